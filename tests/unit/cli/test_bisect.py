# SPDX-License-Identifier: GPL-2.0-only
"""What `unikvm bisect` refuses before anything runs: one line each, the checkout untouched."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from unikvm.bisect.kernels import kernels_of
from unikvm.campaign.git import git
from unikvm.cli.campaigns import pinned
from unikvm.cli.main import main
from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.images import packages
from unit.campaign.repo import commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits in a line, the last one main, and one beside them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "source"
    folder.mkdir()
    git(str(folder), "init", "--quiet", "-b", "main")
    first = commit(folder, "one", kernel__v="1", tools__v="1", **{"scripts__build-module": "1"})
    commit(folder, "two", kernel__v="2")
    git(str(folder), "checkout", "--quiet", "-b", "side", first)
    commit(folder, "beside", tools__v="3")
    git(str(folder), "checkout", "--quiet", "main")
    commit(folder, "three", tools__v="2")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--good", "HEAD~1"], "no test"),
        (["--", "true"], "no good end"),
        (["--good", "nonesuch", "--", "true"], "--good nonesuch: no such commit"),
        (["--good", "HEAD~1", "--bad", "no/such", "--", "true"], "--bad no/such: no such commit"),
        (["--good", "HEAD", "--bad", "HEAD~2", "--", "true"], "are they swapped?"),
        (["--good", "HEAD", "--", "true"], "one commit"),
        (["--good", "side", "--", "true"], "is not contained in --bad"),
        (["--good", "HEAD~1", "--skip", "what", "--", "true"], "--skip what: no such commit"),
        (["--linux", "/no/such", "--linux-good", "x", "--", "true"], "--linux-good x: no such commit in /no/such"),
        (["--linux", "/", "--", "true"], "no good end in the Linux tree"),
        (["--resume", "nonesuch"], "no bisection nonesuch"),
        (["--resume"], "no bisection to go on with"),
        (["--log", "nonesuch"], "no log of nonesuch"),
        (["--replay", "/dev/null", "--", "true"], "no log of git bisect"),
    ],
)
def test_refusals(repository: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    at = words.index("--") if "--" in words else len(words)
    status = main(["bisect", *words[:at], "--repository", str(repository), *words[at:]])
    errors = capsys.readouterr().err
    assert status == CANNOT_RUN
    assert message in errors
    assert errors.count("\n") == 1


def test_a_dirty_checkout(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "tools/v").write_text("changed")
    assert main(["bisect", "--good", "HEAD~1", "--repository", str(repository), "--", "true"]) == CANNOT_RUN
    assert "commit or stash" in capsys.readouterr().err
    assert (repository / "tools/v").read_text() == "changed"


def test_no_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "--good", "HEAD~1", "--repository", str(tmp_path), "--", "true"]) == CANNOT_RUN
    assert "not a git repository" in capsys.readouterr().err


PACKAGES = [f"linux-image-6.1.0-{number}-cloud-amd64" for number in (9, 10, 11, 47)] + ["linux-image-cloud-amd64"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.1.0-9..6.1.0-11", ["6.1.0-9", "6.1.0-10", "6.1.0-11"]),
        ("6.1.0-11..6.1.0-10", ["6.1.0-11", "6.1.0-10"]),
        ("6.1.0-9-cloud-amd64,6.1.0-10..6.1.0-11", ["6.1.0-9", "6.1.0-10", "6.1.0-11"]),
        ("linux-image-6.1.0-9-cloud-amd64, 6.1.0-47", ["6.1.0-9", "6.1.0-47"]),
    ],
)
def test_host_kernels(monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]) -> None:
    monkeypatch.setattr("unikvm.bisect.kernels.known_packages", lambda _prefix: PACKAGES)
    assert kernels_of(text) == tuple(f"{release}-cloud-amd64" for release in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6.1.0-9..6.1.0-99", "no package for 6.1.0-99-cloud-amd64"),
        ("6.1.0-9..6.1.0-10-amd64", "two flavours"),
        ("/no/such.deb", "no such kernel"),
        ("6.1.0-9,6.1.0-9", "twice"),
        (",", "names no kernel"),
    ],
)
def test_host_kernels_that_are_none(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr("unikvm.bisect.kernels.known_packages", lambda _prefix: PACKAGES)
    with pytest.raises(CannotRun, match=message):
        kernels_of(text)


def test_kernels_by_path(tmp_path: Path) -> None:
    (tmp_path / "bzImage").touch()
    assert kernels_of(str(tmp_path / "bzImage")) == (str(tmp_path / "bzImage"),)


def test_known_packages_are_those_of_the_prefix() -> None:
    assert all(name.startswith("linux-image-") for name in packages.known_packages("linux-image-"))


def test_the_guests_kernel_is_pinned(tmp_path: Path) -> None:
    payload = str(tmp_path / "payload")  # a multiboot header: magic, flags, checksum
    Path(payload).write_bytes(bytes(64) + struct.pack("<III", 0x1BADB002, 0, 0xFFFFFFFF & -0x1BADB002) + bytes(64))
    assert pinned(["unikvm", "run", "x.elf"]) == ("unikvm", "run", "x.elf")
    assert pinned(["unikvm", "run", "-k", "K", "--", "ls"]) == ("unikvm", "run", "-k", "K", "--", "ls")
    assert pinned([payload, "-m", "64M"]) == ("unikvm", "run", payload, "-m", "64M")
    assert pinned(["./test.sh", "unikvm"]) == ("./test.sh", "unikvm")
    command = pinned(["unikvm", "run", "-q", "--", "ls", "-k"])
    assert command[:3] == ("unikvm", "run", "--kernel")
    assert command[4:] == ("-q", "--", "ls", "-k")
