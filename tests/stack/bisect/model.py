# SPDX-License-Identifier: GPL-2.0-only
"""What a made history consists of: edits by exact text, commits, side branches, and the regressions seeded in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

KERNEL_HALF = "kernel half"
USER_HALF = "user half"
INTERACTION = "interaction"


class Edit(NamedTuple):
    """`old` stands exactly once in the file and becomes `new`. An empty `old`: the file is new."""

    path: str
    old: str
    new: str


class Commit(NamedTuple):
    """One commit. `name`: by which records refer to it; only those that matter to a test have one."""

    subject: str
    edits: tuple[Edit, ...]
    name: str = ""


class Merge(NamedTuple):
    """`side` and `main` go on from the same commit, and a merge brings them together."""

    subject: str
    side: tuple[Commit, ...]
    main: tuple[Commit, ...]


class Seed(NamedTuple):
    """A regression before the history exists: `good`, `bad` and `first_bad` are names of commits.

    `case` is a program in cases/, `payload` its argument. `suspects` are there where the first bad commit cannot be
    tested: whoever bisects can only say that it is one of them.
    """

    name: str
    attribution: str
    case: str
    payload: str
    what: str
    first_bad: str
    good: str = "root"
    bad: str = "tip"
    suspects: tuple[str, ...] = ()
    signature: str = ""
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Regression:
    """A regression in a made history: revisions are SHAs, `test` is the TEST's argument vector.

    `first_bad` is what a bisection has to find; with `suspects` (oldest first; `first_bad` is among them) it can
    only name these, because what lies between them cannot be built. `signature`: a pattern that the output of the
    right failure matches, and that of an unrelated one in the range does not. `rate`: how often the TEST fails where
    it is bad.
    """

    name: str
    attribution: str
    what: str
    good: str
    bad: str
    first_bad: str
    test: tuple[str, ...]
    suspects: tuple[str, ...] = ()
    signature: str = ""
    rate: float = 1.0
