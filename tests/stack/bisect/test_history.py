# SPDX-License-Identifier: GPL-2.0-only
"""The made history itself: the edits fit this tree, and the records are of it. What the TESTs do: verify.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stack.bisect.history import TREE, EditError, History, _Writer, make_history
from stack.bisect.model import INTERACTION, KERNEL_HALF, USER_HALF, Commit, Edit


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return make_history(tmp_path_factory.mktemp("history") / "repository", TREE)


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


def test_it_is_a_history_to_search(history: History) -> None:
    assert len(history.commits) >= 40
    assert [made for made in history.commits if len(made.parents) == 2]
    assert git(history.folder, "rev-parse", "HEAD").strip() == history.tip
    assert git(history.folder, "status", "--porcelain") == ""
    assert int(git(history.folder, "rev-list", "--count", "HEAD")) == len(history.commits)
    git(history.folder, "fsck", "--strict")


def test_the_root_is_this_tree(history: History) -> None:
    names = git(history.folder, "ls-tree", "-r", "--name-only", history.commits[0].sha).splitlines()
    here = [name for name in git(TREE, "ls-files").splitlines() if (TREE / name).exists()]
    assert sorted(names) == sorted(here)


def test_the_same_tree_gives_the_same_commits(history: History, tmp_path: Path) -> None:
    again = make_history(tmp_path / "again", TREE)
    assert again.commits == history.commits
    assert again.regressions == history.regressions


def test_the_records_are_of_this_history(history: History) -> None:
    kinds = {found.attribution for found in history.regressions}
    assert kinds == {KERNEL_HALF, USER_HALF, INTERACTION}
    for found in history.regressions:
        inside = git(history.folder, "rev-list", f"{found.good}..{found.bad}").split()
        assert found.first_bad in inside, found.name
        assert set(found.suspects) <= set(inside), found.name
        assert not found.suspects or found.first_bad in found.suspects, found.name
        assert all(os.path.exists(word) for word in found.test if word.startswith("/")), found.test


@pytest.mark.parametrize("old", ["not there", "twice"])
def test_an_edit_that_does_not_fit_is_noticed(old: str) -> None:
    writer = _Writer({"file": ("100644", b"twice twice")})
    with pytest.raises(EditError, match="a subject: file has"):
        writer.run((Commit("a subject", (Edit("file", old, "new"),)),))
