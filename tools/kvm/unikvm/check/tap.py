# SPDX-License-Identifier: GPL-2.0-only
"""KTAP (Linux: Documentation/dev-tools/ktap.rst), which readers of TAP take too: written as results come, and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check.case import KNOWN, Case, worst

_LINE = re.compile(r"^(\s*)(not ok|ok) (\d+)(?: -)? ?(.*)$")
_SHOWN = 20  # lines of a failure's output


@dataclass(frozen=True)
class Line:
    """One result line. `depth`: of the subtest; `directive`: SKIP, TODO … or empty."""

    depth: int
    ok: bool
    number: int
    name: str
    directive: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is a failure: of a test that is to do, or known to fail, it is none."""
        return not self.ok and self.directive not in ("SKIP", "TODO", "XFAIL")


def parse(text: str) -> list[Line]:
    """The result lines in `text`; all else, of which there is much in tests' output, is passed over."""
    lines = []
    for found in map(_LINE.match, text.splitlines()):
        if found:
            name, _, directive = found[4].partition(" # ") if not found[4].startswith("# ") else ("", "", found[4][2:])
            lines.append(
                Line(len(found[1]) // 2, found[2] == "ok", int(found[3]), name.strip(), directive.split(" ")[0].upper())
            )
    return lines


def plain(text: str) -> str:
    """`text` as KTAP's descriptions take it: one line without `#`."""
    return " ".join(text.replace("#", "").split())


def result(number: int, name: str, kind: str, says: str = "") -> str:
    """A result line."""
    word = "ok" if kind in (PASS, SKIP) else "not ok"
    directive = {SKIP: " # SKIP", KNOWN: " # TODO known"}.get(kind, "")
    more = plain(says)
    if directive:
        return f"{word} {number} {plain(name)}{directive}{' ' + more if more else ''}"
    return f"{word} {number} {plain(name)}"


@dataclass
class Group:
    """Subtests of one test of the whole: a commit's, a suite's. `planned`: how many there will be."""

    name: str
    planned: int
    cases: list[Case] = field(default_factory=list)
    over: bool = False
    note: str = ""  # for people

    @property
    def verdict(self) -> str:
        """Of all its cases together."""
        return worst(self.cases)


class Writer:
    """Writes groups in their order, each case as soon as the groups before are over."""

    def __init__(self, write: Callable[[str], object], groups: Sequence[Group]) -> None:
        self._write = write
        self._groups = groups
        self._at = 0  # the group that is written
        self._written = -1  # its cases that are; -1: not even its head
        write(f"KTAP version 1\n1..{len(groups)}\n")

    def update(self) -> None:
        """Write what has come."""
        while self._at < len(self._groups):
            group = self._groups[self._at]
            self._write("".join(f"  {line}\n" for line in self._new(group)))
            if not group.over:
                return
            says = group.cases[0].reason if group.cases and group.verdict == SKIP else ""
            self._write(f"{result(self._at + 1, group.name, group.verdict, says)}\n")
            self._at, self._written = self._at + 1, -1

    def _new(self, group: Group) -> Iterator[str]:
        if self._written < 0 and (group.cases or group.over):
            self._written = 0
            yield "KTAP version 1"
            yield f"# Subtest: {plain(group.name)}"
            yield f"1..{group.planned}"
            if group.note:
                yield f"# {group.note}"
        for number, case in enumerate(group.cases[max(0, self._written) :], max(0, self._written) + 1):
            yield from lines(number, case)
            self._written = number


def lines(number: int, case: Case) -> Iterator[str]:
    """A case: its line, and of a failure why, and the end of its output."""
    if case.verdict == FAIL:
        yield f"# {case.name}: {' '.join(case.says.split())}"
        yield from (f"# | {line}" for line in case.output.strip().splitlines()[-_SHOWN:])
    elif case.verdict == PASS and case.note:
        yield f"# {case.name}: {' '.join(case.note.split())}"
    yield result(number, case.name, case.verdict, case.says)
