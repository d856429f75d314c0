# SPDX-License-Identifier: GPL-2.0-only
"""The command line: help that fits a screen, errors in one line with status 125, and `-- CMD`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    [["nonsense"], ["run", "--nonsense"], ["run", "-k", "/no/such/kernel"], ["run", "-m", "lots"], ["doctor", "x"]],
)
def test_errors_are_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(argv)
    except SystemExit as end:
        status = int(str(end.code))
    assert status == CANNOT_RUN
    errors = capsys.readouterr().err
    assert errors.startswith("unikvm: ")
    assert errors.count("\n") == 1


def test_what_follows_the_dashes_is_the_command() -> None:
    assert split_command(["-k", "K", "--", "ls", "--", "-l"]) == (["-k", "K"], ["ls", "--", "-l"])
    assert split_command(["-k", "K"]) == (["-k", "K"], [])


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


def test_a_result_that_cannot_be_written_leaves_no_half(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"cannot write the result to /dev/full: No space left on device$"):
        save_result("/dev/full", b"{}")
    with pytest.raises(CannotRun, match="No such file or directory"):
        save_result(str(tmp_path / "none/result"), b"{}")
    save_result(str(tmp_path / "result"), b"{}")
    assert (tmp_path / "result").read_bytes() == b"{}"
