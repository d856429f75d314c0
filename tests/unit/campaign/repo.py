# SPDX-License-Identifier: GPL-2.0-only
"""Makes commits for the tests."""

from __future__ import annotations

from pathlib import Path

from unikvm.campaign.git import git


def commit(folder: Path, message: str, **files: str) -> str:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    git(str(folder), "add", "-A")
    git(str(folder), "commit", "--quiet", "--allow-empty", "-m", message)
    return git(str(folder), "rev-parse", "HEAD").strip()
