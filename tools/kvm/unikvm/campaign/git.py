# SPDX-License-Identifier: GPL-2.0-only
"""A campaign's repository: bare, with the developer's objects borrowed, so that his own is only read."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from unikvm.errors import CannotRun

KERNEL_HALF = ("kernel", "scripts/build-module")  # what decides what unikvm.ko is
# What decides what the user half is; not what no run reads.
NOT_USER_HALF = (*KERNEL_HALF, "Documentation", "tests", ".ci", ".github", "README.md", "MAINTAINERS", "LICENSE")
_IDENTITY = {
    "GIT_AUTHOR_NAME": "unikvm",
    "GIT_AUTHOR_EMAIL": "unikvm@localhost",
    "GIT_AUTHOR_DATE": "@0 +0000",
    "GIT_COMMITTER_NAME": "unikvm",
    "GIT_COMMITTER_EMAIL": "unikvm@localhost",
    "GIT_COMMITTER_DATE": "@0 +0000",
}


def git(folder: str, *args: str, feed: str | None = None) -> str:
    """git's output, in `folder`. CannotRun with its own words where it fails."""
    # A hook's variables would lead to another repository, a user's configuration run his hooks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", folder, "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", *args]
    try:
        done = subprocess.run(
            command,
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**environment, **_IDENTITY, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise CannotRun("git is missing", hint="install the package git") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise CannotRun(f"git {args[0]}: {lines[-1].removeprefix('fatal: ').removeprefix('error: ')}")
    return done.stdout


@dataclass(frozen=True)
class Commit:
    """One commit of the range: its parents within the range, its subject."""

    sha: str
    parents: tuple[str, ...]
    subject: str


class Repository:
    """`path`: the campaign's own bare repository."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def borrow(cls, path: str, source: str) -> Repository:
        """A new one at `path` that reads the objects of the repository which the directory `source` is in."""
        objects = git(source, "rev-parse", "--git-path", "objects").strip()
        os.makedirs(path, exist_ok=True)
        git(path, "init", "--quiet", "--bare")
        with open(os.path.join(path, "objects/info/alternates"), "w", encoding="utf-8") as file:
            file.write(f"{os.path.abspath(os.path.join(source, objects))}\n")
        return cls(path)

    @classmethod
    def unbundle(cls, path: str, bundle: str) -> Repository:
        """A new one at `path` with all that is in a file of `bundle`."""
        os.makedirs(path, exist_ok=True)
        git(path, "init", "--quiet", "--bare")
        git(path, "fetch", "--quiet", bundle, "refs/*:refs/*")
        return cls(path)

    def bundle(self, path: str, commits: Sequence[str]) -> None:
        """Write a file with `commits` and all before them."""
        for number, commit in enumerate(commits):
            git(self.path, "update-ref", f"refs/heads/campaign-{number}", commit)
        git(self.path, "bundle", "create", "--quiet", path, "--branches")

    def range(self, bad: str, good: Sequence[str], *, first_parent: bool = False) -> list[Commit]:
        """The commits that are in `bad` and not in `good`, parents before children."""
        options = [
            "--topo-order",
            "--reverse",
            "--format=%H%x00%P%x00%s",
            *(["--first-parent"] if first_parent else []),
        ]
        text = git(self.path, "log", *options, bad, *(f"^{commit}" for commit in good), "--")
        rows = [line.split("\0") for line in text.splitlines()]
        inside = {row[0] for row in rows}
        count = 1 if first_parent else None
        return [
            Commit(sha, tuple(p for p in parents.split()[:count] if p in inside), text) for sha, parents, text in rows
        ]

    def subject(self, commit: str) -> str:
        """`abbreviated-sha "subject"`."""
        return git(self.path, "log", "-1", "--format=%h (%s)", commit).strip()

    def show(self, commit: str) -> str:
        """What git bisect prints of the first bad commit."""
        return git(self.path, "show", "--no-color", "--stat", "--summary", "--format=medium", commit)

    def parent(self, commit: str) -> str:
        """The first parent."""
        return git(self.path, "rev-parse", "--verify", f"{commit}^1").strip()

    def content(self, commit: str) -> tuple[str, str]:
        """Names for what the kernel half and the user half of `commit` are: the same sources give the same names."""
        lines = git(self.path, "ls-tree", commit, "--", "./").splitlines()
        entries = [line.split("\t") for line in lines]
        user = [f"{what} {name}" for what, name in entries if name not in NOT_USER_HALF and name != "scripts"]
        scripts = git(self.path, "ls-tree", commit, "--", "scripts/").splitlines()
        user += [line for line in scripts if line.split("\t")[1] not in KERNEL_HALF]
        kernel = [line for line in (*lines, *scripts) if line.split("\t")[1] in KERNEL_HALF]
        return _digest(kernel), _digest(user)

    def crossed(self, user: str, kernel: str) -> str:
        """A commit with the user half of one and the kernel half of the other; itself where they are one."""
        if user == kernel:
            return user
        root = _with_entry(git(self.path, "ls-tree", user), git(self.path, "ls-tree", kernel), "kernel")
        scripts = _with_entry(
            git(self.path, "ls-tree", f"{user}:scripts"), git(self.path, "ls-tree", f"{kernel}:scripts"), "build-module"
        )
        scripts_tree = git(self.path, "mktree", feed=scripts).strip()
        root = _with_entry(root, f"040000 tree {scripts_tree}\tscripts\n", "scripts")
        tree = git(self.path, "mktree", feed=root).strip()
        message = f"unikvm: the user half of {user[:12]} with the kernel half of {kernel[:12]}"
        return git(self.path, "commit-tree", "-p", user, "-m", message, tree).strip()

    def check_out(self, commit: str, folder: str) -> None:
        """A worktree of `commit` at `folder`, from scratch."""
        git(self.path, "worktree", "prune")
        git(self.path, "worktree", "add", "--quiet", "--force", "--detach", folder, commit)


def _with_entry(listing: str, other: str, name: str) -> str:
    """`listing` (of ls-tree) with its entry `name` as in `other`."""
    entry = [line for line in other.splitlines() if line.endswith(f"\t{name}")]
    return "".join(f"{line}\n" for line in [*(x for x in listing.splitlines() if not x.endswith(f"\t{name}")), *entry])


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
