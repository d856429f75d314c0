# SPDX-License-Identifier: GPL-2.0-only
"""From the words of `unikvm check` to what will be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.campaign.git import git
from unikvm.cli.check import command_of, commits_of, linux_kernels, previous_of
from unikvm.cli.parser import command_parser
from unikvm.errors import CannotRun
from unit.campaign.repo import commit


@pytest.fixture
def history(tmp_path: Path) -> tuple[str, list[str]]:
    git(str(tmp_path), "init", "--quiet", "-b", "main")
    commits = [commit(tmp_path, str(number), file=str(number)) for number in range(4)]
    return str(tmp_path), commits


def test_ranges(history: tuple[str, list[str]]) -> None:
    source, commits = history
    last = (commits[2], (commits[3],))
    assert commits_of(source, None) == last
    assert commits_of(source, "HEAD~1") == last
    assert commits_of(source, "HEAD~3..HEAD~1") == (commits[0], tuple(commits[1:3]))
    assert commits_of(source, f"{commits[1]}..") == (commits[1], tuple(commits[2:]))
    git(source, "branch", "up", commits[1])
    git(source, "branch", "--quiet", "--set-upstream-to=up")
    assert commits_of(source, None) == (commits[1], tuple(commits[2:]))


def test_a_base_on_another_branch(history: tuple[str, list[str]], tmp_path: Path) -> None:
    source, commits = history
    git(source, "checkout", "--quiet", "-b", "side", commits[1])
    commit(tmp_path, "side", other="1")
    assert commits_of(source, "side..main") == (commits[1], tuple(commits[2:]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing..HEAD", "RANGE: nothing: no such commit"),
        ("HEAD..HEAD", "has no commits"),
        ("HEAD~1...HEAD", "three dots"),
    ],
)
def test_no_range(history: tuple[str, list[str]], text: str, message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        commits_of(history[0], text)


def test_previous(history: tuple[str, list[str]]) -> None:
    source, commits = history
    assert previous_of(source, None, commits[2], commits[3]) == commits[2]
    git(source, "tag", "v1", commits[1])
    git(source, "tag", "v2", commits[3])
    assert previous_of(source, None, commits[2], commits[3]) == commits[1]
    assert previous_of(source, "HEAD~3", commits[2], commits[3]) == commits[0]
    assert previous_of(source, "", commits[2], commits[3]) == ""
    with pytest.raises(CannotRun, match="--previous v9: no such commit"):
        previous_of(source, "v9", commits[2], commits[3])


def test_commits_of_a_linux_tree(history: tuple[str, list[str]]) -> None:
    source, commits = history
    parse = command_parser("check").parse_args
    assert linux_kernels(parse(["--linux", source])) == (f"linux:{commits[2]}", f"linux:{commits[3]}")
    args = parse(["--linux", source, "--linux-range", "HEAD~3..HEAD~1"])
    assert linux_kernels(args) == (f"linux:{commits[0]}", f"linux:{commits[2]}")
    with pytest.raises(CannotRun, match=r"--linux-range HEAD\.\.HEAD has no commits"):
        linux_kernels(parse(["--linux", source, "--linux-range", "HEAD..HEAD"]))
    with pytest.raises(CannotRun, match="named twice"):
        linux_kernels(parse(["--linux", source, "--host-kernel", "x"]))


def test_commands() -> None:
    assert command_of("unikvm run -- 'a b'") == ("unikvm run -- 'a b'", ("unikvm", "run", "--", "a b"))
    assert command_of("a | b") == ("a | b", ("sh", "-c", "a | b"))
    with pytest.raises(CannotRun, match="No closing quotation"):
        command_of("a 'b")
