# SPDX-License-Identifier: GPL-2.0-only
"""The tree's files, for tests that look at all of them."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PACKAGE = TREE / "tools/kvm/unikvm"
GENERATED = "tools/kvm/unikvm/uapi/"
NOT_SOURCE = ("build/", "dist/", ".git/")


@cache
def files() -> tuple[str, ...]:
    """Paths of the files that are tracked or about to be; of all files, where the tree is not a git checkout."""
    command = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = {name for name in done.stdout.split("\0") if name and (TREE / name).exists()}
    if names:
        return tuple(sorted(names))
    paths = (str(path.relative_to(TREE)) for path in TREE.rglob("*") if path.is_file() and not path.is_symlink())
    return tuple(
        sorted(
            name for name in paths if not name.startswith(NOT_SOURCE) and "cache" not in name and name[-4:] != ".pyc"
        )
    )


def text(name: str) -> str:
    """The content of a file; empty when it is not text."""
    try:
        return (TREE / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def is_python(name: str) -> bool:
    return name.endswith(".py") or (name.startswith("scripts/") and "python" in text(name).split("\n", 1)[0])


def is_c(name: str) -> bool:
    return name.endswith((".c", ".h", ".S"))
