# SPDX-License-Identifier: GPL-2.0-only
"""The command line: help that fits a screen, errors in one line with status 125, and `-- CMD`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unikvm.cli import elsewhere
from unikvm.cli.main import COMMANDS, main, split_command, usage
from unikvm.cli.options.disks import parse_disk
from unikvm.cli.outcome import save_result
from unikvm.cli.parser import command_parser
from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.machine.config import Disk

TREE = Path(__file__).resolve().parents[3]
SCREEN = 50  # lines of a terminal


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_has_examples(name: str) -> None:
    text = command_parser(name).format_help()
    assert "SUPPRESS" not in text
    assert "examples:" in text
    assert len(text.splitlines()) <= SCREEN
    assert all(len(line) <= 130 for line in text.splitlines())


def test_usage_names_every_command() -> None:
    assert all(name in usage() for name in COMMANDS)


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["run", "--nonsense"],
        ["run", "-k", "/no/such/kernel"],
        ["run", "-m", "lots"],
        ["doctor", "x"],
        ["run", "-d", "/no/such"],
        ["attach", "lab", "-d", "/no/such"],
    ],
)
def test_errors_are_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    errors = said(argv, capsys)
    assert errors.startswith("unikvm: ")
    assert errors.count("\n") == 1


def test_what_follows_the_dashes_is_the_command() -> None:
    assert split_command(["-k", "K", "--", "ls", "--", "-l"]) == (["-k", "K"], ["ls", "--", "-l"])
    assert split_command(["-k", "K"]) == (["-k", "K"], [])


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says of a command line that it does not take."""
    try:
        status = main(argv)
    except SystemExit as end:
        status = int(str(end.code))
    assert status == CANNOT_RUN
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ps", "no command 'ps' (use `unikvm list`)"),
        ("chek", "no command 'chek' (use `unikvm check`)"),
        ("help frob", "no command 'frob' (one of run, "),
        ("run -kernel x", "no option -kernel: use --kernel "),
        ("run -name lab", "no option -name: use --name "),
        ("run -smp 2", "no option -smp: use --cpus "),
        ("run -m 1G --memory=2G", "no option --memory: use --mem "),
        ("run --timout 3", "no option --timout: use --timeout "),
        ("run --nonsense", "no option --nonsense (see "),
        ("run uname -a", "no option -a: a command comes after `--` "),
        ("run vmlinux ls", "'ls' is one word too many: a command comes after `--` "),
        ("shell lab -- ls", "'ls' is one word too many (see "),
        ("exec lab", "no command (unikvm exec NAME CMD, "),
        ("set", "required: KEY=VALUE "),
    ],
)
def test_mistakes_are_told_what_to_type(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in said(line.split(), capsys)


def test_names_of_other_tools_lead_to_what_there_is() -> None:
    assert {meant.split()[0] for meant in elsewhere.COMMANDS.values()} <= set(COMMANDS)
    assert not elsewhere.COMMANDS.keys() & COMMANDS.keys()
    known = command_parser("run")._option_string_actions
    named = {word for meant in elsewhere.OPTIONS.values() for word in meant.split() if word.startswith("--")}
    assert named <= known.keys()
    assert not elsewhere.OPTIONS.keys() & known.keys()


def test_short_options_take_their_values_as_they_did() -> None:
    args = command_parser("run").parse_args(["-c4", "-m1G", "-vv", "-pquiet"])
    assert (args.cpus, args.mem, args.verbose, args.append) == ("4", "1G", 2, "quiet")


@pytest.mark.parametrize(
    ("line", "options", "command"),
    [
        ("lab ls -l", ["lab"], ["ls", "-l"]),
        ("-it lab sh", ["-it", "lab"], ["sh"]),
        ("lab -t top -b", ["lab", "-t"], ["top", "-b"]),
        ("--user daemon lab id -u", ["--user", "daemon", "lab"], ["id", "-u"]),
        ("--env=A=b -w /tmp lab env", ["--env=A=b", "-w", "/tmp", "lab"], ["env"]),
        ("lab", ["lab"], []),
        ("lab --user", ["lab", "--user"], []),
    ],
)
def test_exec_takes_a_command_without_dashes(line: str, options: list[str], command: list[str]) -> None:
    assert command_parser("exec").split(line.split()) == (options, command)


def test_a_directory_as_standard_input() -> None:
    done = subprocess.run(
        ["sh", "-c", f'"{TREE}/scripts/unikvm" list < /'], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (CANNOT_RUN, "unikvm: standard input is a directory\n")


def test_set_takes_a_disk_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[tuple[object, ...], dict[str, object]]] = []
    monkeypatch.setattr("unikvm.control.client.call", lambda *words, **values: asked.append((words, values)))
    assert main(["set", "lab", "cpus=2", "disk=/a.img,size=20G"]) == 0
    assert main(["set", "lab", "disk=b/../a.img"]) == 0
    assert asked == [
        (("lab", "set"), {"cpus": "2", "disk": {"path": "/a.img", "size": "20G"}}),
        (("lab", "set"), {"disk": {"path": f"{os.getcwd()}/b/../a.img"}}),
    ]
    for disk, why in (
        ("a,size=x", "bad size 'x'"),
        ("a,size=0", "more than nothing"),
        (",size=1G", "which disk?"),
        ("a,ro", "'ro' is not understood"),
    ):
        assert why in said(["set", "lab", f"disk={disk}"], capsys)
    assert len(asked) == 2


def test_disks() -> None:
    assert parse_disk("a.img") == Disk(path="a.img")
    assert parse_disk("a.img,ro,serial=x") == Disk(path="a.img", readonly=True, serial="x")
    assert parse_disk("a.qcow2").kind == "qcow2"
    assert parse_disk("a.QCOW2,format=raw").kind == "raw"
    assert parse_disk("a.img,format=vhdx,writethrough").writethrough
    assert parse_disk("a,direct,queues=4") == Disk(path="a", direct=True, queues=4)
    for text, why in (
        ("a,format=x", "no image format 'x'"),
        ("a.vdi,serial=1", "only a raw"),
        ("a,serial=123456789012345678901", "no serial number"),
        ("a,queues=0", "0 queues are not possible"),
        ("a,queues=x", "no number of queues"),
    ):
        with pytest.raises(CannotRun, match=why):
            parse_disk(text)
    with pytest.raises(CannotRun, match="'rw' is not understood"):
        parse_disk("a.img,rw")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(closed: str) -> None:
    """What is opened first must not take their place, and the status is as ever."""
    script = f'"$0" -I -S "$1" nonsense {closed}'
    argv = ["sh", "-c", script, sys.executable, str(TREE / "tools/kvm/unikvm/__main__.py")]
    assert subprocess.run(argv, stderr=subprocess.PIPE, timeout=60, check=False).returncode == CANNOT_RUN


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "unikvm.cli.doctor", None)
    assert f"{sys.executable} has no package unikvm.cli.doctor (`make setup`" in said(["doctor"], capsys)


def test_an_older_python_is_one_line() -> None:
    script = (
        "import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    argv = [sys.executable, "-c", script, str(TREE / "tools/kvm/unikvm/__main__.py")]
    done = subprocess.run(argv, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == CANNOT_RUN
    assert done.stderr == b"unikvm: Python 3.11 or newer is needed, and this is 3.9\n"


@pytest.mark.parametrize("command", ["run --help", "version", "nonsense"])
def test_a_full_disk_is_one_line_and_no_success(command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"{TREE}/scripts/unikvm" {command} > /dev/full'], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (CANNOT_RUN, 1)


def test_a_result_that_cannot_be_written_leaves_no_half(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"cannot write the result to /dev/full: No space left on device$"):
        save_result("/dev/full", b"{}")
    with pytest.raises(CannotRun, match="No such file or directory"):
        save_result(str(tmp_path / "none/result"), b"{}")
    save_result(str(tmp_path / "result"), b"{}")
    assert (tmp_path / "result").read_bytes() == b"{}"
