# SPDX-License-Identifier: GPL-2.0-only
"""MAINTAINERS has the kernel's format, and somebody looks after every file."""

from __future__ import annotations

import re
from typing import NamedTuple

from style.tree import files, text

ENTRY = re.compile(r"([A-Z]):\t(\S.*)")
STATUS = ("Supported", "Maintained", "Odd Fixes", "Orphan", "Obsolete")


class Section(NamedTuple):
    name: str
    entries: list[tuple[str, str]]

    def all(self, letter: str) -> list[str]:
        return [value for key, value in self.entries if key == letter]


def sections() -> list[Section]:
    """The sections below the explanation, which ends with a line of dashes."""
    body = text("MAINTAINERS").split("\n---", 1)[1].split("\n", 1)[1]
    found = []
    for block in body.strip().split("\n\n"):
        title, *lines = block.split("\n")
        entries = []
        for line in lines:
            match = ENTRY.fullmatch(line)
            assert match, f"MAINTAINERS: {line!r} is no `X:<tab>value`"
            entries.append((match[1], match[2]))
        found.append(Section(title, entries))
    return found


def matches(pattern: str, name: str) -> bool:
    """As scripts/get_maintainer.pl: `dir/` is all below it, `*` and `?` do not cross a slash."""
    if pattern.endswith("/"):
        return name.startswith(pattern)
    quoted = re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.fullmatch(quoted, name) is not None


def test_format() -> None:
    names = [section.name for section in sections()]
    assert names == sorted(names), "the sections are in alphabetical order"
    for section in sections():
        assert section.name == section.name.upper()
        assert section.all("M"), f"{section.name}: who maintains it? (M:)"
        assert all(re.fullmatch(r".+ <\S+@\S+>", who) for who in section.all("M"))
        assert section.all("L"), f"{section.name}: which list? (L:)"
        assert len(section.all("S")) == 1, f"{section.name}: one S:"
        assert section.all("S")[0] in STATUS
        assert section.all("F"), f"{section.name}: which files? (F:)"
        order = [key for key, _ in section.entries]
        assert order == sorted(order, key="MRLSWQBCPTFXNK".index), f"{section.name}: M, L, S, F in this order"


def test_every_file_has_a_maintainer() -> None:
    patterns = [pattern for section in sections() for pattern in section.all("F")]
    orphans = [name for name in files() if not any(matches(pattern, name) for pattern in patterns)]
    assert not orphans


def test_every_pattern_matches() -> None:
    stale = [
        f"{section.name}: {pattern}"
        for section in sections()
        for pattern in section.all("F")
        if not any(matches(pattern, name) for name in files())
    ]
    assert not stale
