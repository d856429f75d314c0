# SPDX-License-Identifier: GPL-2.0-only
"""What a checkout calls itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from unikvm.release import _commit


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    """And nothing of it is written: whoever commits at the same moment needs the index's lock."""

    def git(*words: str) -> str:
        who = ("-c", "user.name=A", "-c", "user.email=a@example")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert _commit(str(tmp_path / "none")) == ""
    git("init", "-q")
    assert _commit(str(tmp_path)) == ""
    file, index = tmp_path / "file", tmp_path / ".git" / "index"
    file.write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    (tmp_path / "untracked").touch()
    commit = git("rev-parse", "HEAD")[:12]
    os.utime(file, (1, 1))  # git has to look, and would like to note what it saw
    before = index.stat().st_mtime_ns
    assert _commit(str(tmp_path)) == commit
    file.write_text("two")
    assert _commit(str(tmp_path)) == f"{commit}-dirty"
    assert index.stat().st_mtime_ns == before
