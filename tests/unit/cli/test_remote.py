# SPDX-License-Identifier: GPL-2.0-only
"""The command lines of `exec` and `cp`, and what is wrong with them."""

from __future__ import annotations

import argparse
import os

import pytest

from unikvm.cli import cp, exec
from unikvm.errors import MAX_CMD_STATUS, CannotRun


@pytest.mark.parametrize(
    ("path", "guest"),
    [
        ("lab:/etc/x", ("lab", "/etc/x")),
        ("lab:", ("lab", "")),
        (":/etc/x:y", ("", "/etc/x:y")),
        ("./lab:x", (None, "./lab:x")),
        ("/a:b", (None, "/a:b")),
        ("file", (None, "file")),
    ],
)
def test_paths(path: str, guest: tuple[str | None, str]) -> None:
    assert cp.guest_of(path) == guest


@pytest.mark.parametrize("paths", [["one"], ["a", "b"], ["lab:a", "lab:b"], ["a", "lab:b", "c"], ["lab:a", "b", "c"]])
def test_copies_that_are_none(paths: list[str]) -> None:
    with pytest.raises(CannotRun, match=r"one side of a copy|a source and a destination"):
        cp.main(argparse.Namespace(paths=paths, quiet=True))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TERM": "vt100", "HOME": "/root", "X": "1"})
    assert exec.environment(["X", "Y=a=b", "Z"], terminal=False) == {"X": "1", "Y": "a=b"}
    assert exec.environment([], terminal=True) == {"TERM": "vt100"}
    with pytest.raises(CannotRun, match="no name"):
        exec.environment(["=x"], terminal=False)


def test_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert exec.shown(7) == 7
    assert exec.shown(MAX_CMD_STATUS) == MAX_CMD_STATUS
    assert capsys.readouterr().err == ""
    assert exec.shown(128 + 9) == MAX_CMD_STATUS
    assert "status 137" in capsys.readouterr().err


def test_a_command_is_needed() -> None:
    with pytest.raises(CannotRun, match="no command"):
        exec.main(argparse.Namespace(command=[], name=None))
