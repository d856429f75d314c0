# SPDX-License-Identifier: GPL-2.0-only
"""What a process of a check is asked to do: one commit, and a list of tasks at it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

BUILD_KERNEL, BUILD_USER, HERE, HOST = "build kernel", "build user", "here", "host"
# How the end of a command is read: ends.py
STATUS, BY_UNIKVM, BY_QEMU, SELFTEST = "status", "unikvm", "qemu", "selftest"
IN_TREE = "{tree}"  # in a command: the worktree of the commit


@dataclass(frozen=True)
class Task:
    """One test. `kind`: a build, or a command on this machine (`here`, in the worktree) or in the host VM.

    `requires` are PATH=VALUE of files in the host VM; `skip` is why it is not run at all.
    """

    name: str
    kind: str
    command: tuple[str, ...] = ()
    cwd: str = "/"
    timeout: float = 60.0
    reads: str = STATUS
    requires: tuple[str, ...] = ()
    skip: str = ""

    def within(self, tree: str) -> tuple[str, ...]:
        """The command for the worktree `tree`."""
        return tuple(word.replace(IN_TREE, tree) for word in self.command)


@dataclass(frozen=True)
class Job:
    """Tasks of one commit, in order; those in the host VM share one. `repository` and `folder` are paths, `memory` in
    bytes. `kernel` is the host's as find_kernel takes it, or `linux:SHA` of the tree `linux`, built with
    `linux_config` (campaign/linux.py)."""

    repository: str
    folder: str
    commit: str
    kernel: str
    tasks: tuple[Task, ...]
    nested_paging: bool = True
    memory: int = 2 << 30
    linux: str = ""
    linux_config: str = ""
    shares: tuple[str, ...] = ()
    patience: float = 1.0

    def dump(self) -> str:
        """JSON for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Job:
        """The job that `dump` wrote."""
        fields = json.loads(text)
        fields["shares"] = tuple(fields["shares"])
        fields["tasks"] = tuple(
            Task(**{**task, "command": tuple(task["command"]), "requires": tuple(task["requires"])})
            for task in fields["tasks"]
        )
        return cls(**fields)
