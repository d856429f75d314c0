# SPDX-License-Identifier: GPL-2.0-only
"""--root, --rwdir, --cwd, --user and --env: what a plan becomes by them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unikvm.cli.options import directories
from unikvm.cli.options.directories import mounts
from unikvm.cli.plan import Export, Plan, load
from unikvm.cli.run import Options, quick_parse
from unikvm.errors import CannotRun
from unikvm.images.depmod import INDEX
from unikvm.machine.config import Config

PLAN = Plan(Config(kernel="vmlinux"), linux=True, command=("true",))


def options(*words: str) -> Options:
    found = quick_parse(list(words))
    assert found is not None
    return found


def added(*words: str, plan: Plan = PLAN) -> Plan:
    return directories.add(plan, options(*words))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "bin").mkdir()
    (made / "bin/sh").touch(0o755)
    (made / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/zsh\nbad line\n"
    )
    (made / "etc/group").write_text("root:x:0:\nkvm:x:106:bob,ann\nann:x:1000:\nadm:x:4:annabel\nwheel:x:10:ann\n")
    return made


def test_root_without_a_value_is_this_machines() -> None:
    assert options("--root").root == "/"
    assert options("-m", "1G", "--root").root == "/"
    assert quick_parse(["--root", "-q"]) is None  # argparse reads that one
    assert options("--root", "/x", "-q").root == "/x"
    plan = added("--root")
    assert plan.exports == (Export("root", "/", "/", True),)
    assert plan.cwd == os.getcwd()


def test_the_working_directory_follows_where_it_can(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "home/ann").mkdir(parents=True)
    monkeypatch.chdir(root / "home/ann")
    assert added("--root", str(root)).cwd == "/home/ann"
    assert added("--root", str(root), "--cwd", "/etc").cwd == "/etc"
    assert added("--user", "7").cwd == "/"
    monkeypatch.chdir(tmp_path)
    assert added("--root", str(root)).cwd == "/"
    assert added("--root", str(root), "--rwdir", f"/w/x={tmp_path}").cwd == "/w/x"
    monkeypatch.chdir(root)
    assert added("--root", str(root), "--rwdir", f"/w/x={tmp_path}").cwd == "/"


def test_writable_directories(root: Path, tmp_path: Path) -> None:
    (root / "srv").mkdir()
    (tmp_path / "a=b").mkdir()
    (tmp_path / "link").symlink_to(root / "srv")
    words = ("--rwdir", str(root / "srv"), "--rwdir", f"/data={root / 'etc'}", "--rwdir", str(tmp_path / "a=b"))
    plan = added("--root", str(root), *words)
    assert plan.exports[1:] == (
        Export("rw0", str(root / "srv"), "/srv", False),
        Export("rw1", str(root / "etc"), "/data", False),
        Export("rw2", str(tmp_path / "a=b"), str(tmp_path / "a=b"), False),
    )
    link = added("--rwdir", str(tmp_path / "link")).exports[0]
    assert (link.path, link.where) == (str(root / "srv"), str(tmp_path / "link"))


def test_users_are_those_of_the_root(root: Path) -> None:
    plan = added("--root", str(root), "--user", "ann")
    assert plan.user == "1000:1000,106,10"
    assert {"HOME=/home/ann", "USER=ann", "LOGNAME=ann", "SHELL=/bin/zsh"} <= set(plan.env or ())
    assert added("--root", str(root), "--user", "1000").user == "1000:1000,106,10"
    assert added("--root", str(root), "--user", "ann:5").user == "1000:5"
    assert added("--root", str(root), "--user", "77").user == "77:77"
    assert added("--user", "77:8").user == "77:8"
    plain = added("--root", str(root))
    assert plain.user == ""
    assert "HOME=/root" in (plain.env or ())


def test_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "as it is")
    plan = added("--root", str(root), "--env", "HERE", "--env", "A=b=c", "--env", "HOME=/else", "--env", "NOT_SET")
    assert {"HERE=as it is", "A=b=c", "HOME=/else"} <= set(plan.env or ())
    assert not [text for text in plan.env or () if text.startswith("NOT_SET")]


def test_without_a_command_there_is_a_shell(root: Path) -> None:
    none = PLAN.replace(command=())
    assert added("--root", str(root), plan=none).command == ("/bin/sh",)
    assert added("--root", str(root), "--user", "ann", plan=none).command == ("sh",)  # there is no zsh
    assert added("--user", "1", plan=none).command == ("sh",)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--root", "/no/such"), "--root /no/such: no such directory"),
        (("--rwdir", "/no/such"), "--rwdir /no/such: no such directory"),
        (("--rwdir", "/=/tmp"), "no place for it"),
        (("--rwdir", "/x=/"), "not all of the machine"),
        (("--rwdir", "relative=/tmp"), "no place for it"),
        (("--user", "ann"), "without --root there are numbers only"),
        (("--user", "5:staff"), "no number of a group"),
        (("--env", "=x"), "no name"),
    ],
)
def test_refusals(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(CannotRun) as refusal:
        added(*words)
    assert text in str(refusal.value)


def test_a_payload_has_no_files() -> None:
    with pytest.raises(CannotRun, match="a payload has no files"):
        added("--root", plan=Plan(Config(kernel="payload.elf"), linux=False))


def test_modules_are_bound_shared_or_there_already(root: Path, tmp_path: Path) -> None:
    plan = added("--root", str(root), "--rwdir", f"/w={tmp_path}")
    inside, outside = root / "cache/modules", tmp_path / "modules"
    for place in (inside, outside):
        place.mkdir(parents=True)
        (place / INDEX).touch()
    assert directories.with_modules(plan, "6.1", str(inside), print).binds == (("/cache/modules", "/lib/modules/6.1"),)
    shared = directories.with_modules(plan, "6.1", str(outside), print)
    assert shared.exports[-1] == Export("modules", str(outside), "/lib/modules/6.1", True)
    there = root / "lib/modules/6.1"
    there.mkdir(parents=True)
    assert directories.with_modules(plan, "6.1", str(there), print) == plan
    assert directories.with_modules(PLAN, "6.1", str(inside), print) == PLAN
    flags = ["foreign"] if os.getuid() else []
    assert mounts(shared) == [
        ("root", "virtiofs", "root", "", *flags),
        ("share", "virtiofs", "rw0", "/w", ""),
        ("share", "virtiofs", "modules", "/lib/modules/6.1", "ro"),
    ]
    assert load(shared.dump()) == shared
