# SPDX-License-Identifier: GPL-2.0-only
"""The campaign's repository, over a real one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from unikvm.campaign.git import Repository, git
from unikvm.errors import CannotRun
from unit.campaign.repo import commit


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    git(str(folder), "init", "--quiet", "-b", "main")
    return folder


@pytest.fixture
def history(source: Path) -> list[str]:
    return [
        commit(source, "root", kernel__main="1", tools__user="1", scripts__run="1", **{"scripts__build-module": "1"}),
        commit(source, "docs", Documentation__a="x", tests__t="x"),
        commit(source, "kernel", kernel__main="2"),
        commit(source, "user", tools__user="2"),
        commit(source, "module's build", **{"scripts__build-module": "2"}),
        commit(source, "a script", scripts__run="2"),
    ]


@pytest.fixture
def borrowed(tmp_path: Path, source: Path, history: list[str]) -> Repository:
    return Repository.borrow(str(tmp_path / "own.git"), str(source / "tools"))


def test_the_range(borrowed: Repository, history: list[str]) -> None:
    commits = borrowed.range(history[3], [history[0]])
    assert [one.sha for one in commits] == history[1:4]
    assert [one.parents for one in commits] == [(), (history[1],), (history[2],)]
    assert commits[1].subject == "kernel"


def test_halves_by_content(borrowed: Repository, history: list[str]) -> None:
    kernel, user = zip(*(borrowed.content(one) for one in history), strict=True)
    assert [a == b for a, b in pairwise(kernel)] == [True, False, True, False, True]
    assert [a == b for a, b in pairwise(user)] == [True, True, False, True, False]


def test_crossed(borrowed: Repository, history: list[str]) -> None:
    old, new = history[0], history[-1]
    crossed = borrowed.crossed(old, new)
    assert borrowed.content(crossed)[0] == borrowed.content(new)[0]
    assert borrowed.content(crossed)[1] == borrowed.content(old)[1]
    assert borrowed.crossed(old, new) == crossed
    assert borrowed.crossed(new, new) == new


def test_the_source_is_only_read(tmp_path: Path, source: Path, borrowed: Repository, history: list[str]) -> None:
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in source.rglob("*") if path.is_file()}

    before = everything()
    tree = tmp_path / "trees" / "one"
    borrowed.check_out(borrowed.crossed(history[0], history[-1]), str(tree))
    assert (tree / "kernel/main").read_text() == "2"
    assert (tree / "tools/user").read_text() == "1"
    assert everything() == before


def test_a_bundle_has_it_all(tmp_path: Path, borrowed: Repository, history: list[str]) -> None:
    borrowed.bundle(str(tmp_path / "bundle"), [history[-1]])
    other = Repository.unbundle(str(tmp_path / "other.git"), str(tmp_path / "bundle"))
    assert other.crossed(history[0], history[-1]) == borrowed.crossed(history[0], history[-1])


def test_errors_are_one_line(source: Path) -> None:
    with pytest.raises(CannotRun, match=r"^git rev-parse: "):
        git(str(source), "rev-parse", "nonesuch")
