# SPDX-License-Identifier: GPL-2.0-only
"""A commit's worktree in a campaign's folder, and the environment in which tests find the commit's own unikvm."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from unikvm.campaign.git import Repository
from unikvm.errors import CannotRun

INHERITED = ("HOME", "LANG", "TERM", "XDG_CACHE_HOME", "UNIKVM_DEBUG")


@contextmanager
def locked(folder: str, name: str) -> Iterator[None]:
    """Other processes of this campaign wait: two may be at the same commit."""
    with open(os.path.join(folder, f"{name}.lock"), "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def worktree(repository: Repository, folder: str, commit: str) -> str:
    """The worktree of `commit`; made, and made again where an interrupted run left half of one."""
    tree = os.path.join(folder, commit[:16])
    whole = os.path.join(folder, f"{commit[:16]}.whole")
    if not os.path.exists(whole):
        shutil.rmtree(tree, ignore_errors=True)
        try:
            repository.check_out(commit, tree)
        except CannotRun:
            if shutil.disk_usage(folder).free < 16 << 20:
                raise CannotRun(f"no room for a worktree in {folder}") from None
            raise
        open(whole, "w", encoding="ascii").close()
    return tree


def environment(tree: str, commit: str, release: str) -> dict[str, str]:
    """For a test of `commit`, checked out in `tree`, on a host kernel of that release."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {
        "PATH": f"{tree}/scripts:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "UNIKVM_TREE": tree,
        "UNIKVM_COMMIT": commit,
        "UNIKVM_HOST_KERNEL": release,
    }
