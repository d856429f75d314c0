# SPDX-License-Identifier: GPL-2.0-only
"""KTAP as it is written and read."""

from __future__ import annotations

from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check.case import KNOWN, Case
from unikvm.check.tap import Group, Line, Writer, parse

WHOLE = """\
KTAP version 1
1..2
  KTAP version 1
  # Subtest: 1234567 (room: Do 1)
  1..2
  ok 1 kernel half builds
  # unit tests: exit 1
  # | assert 1 == 2
  not ok 2 unit tests
not ok 1 1234567 (room: Do 1)
  KTAP version 1
  # Subtest: suite
  1..4
  # a note
  ok 1 a
  not ok 2 b # TODO known exit 1; failed before
  ok 3 c # SKIP no such thing
  # d: failed before: exit 1
  ok 4 d
ok 2 suite
"""


def groups() -> tuple[list[Group], list[list[Case]]]:
    first = [Case("kernel half builds", PASS), Case("unit tests", FAIL, "exit 1", output="\nassert 1 == 2\n")]
    second = [
        Case("a", PASS),
        Case("b", KNOWN, "exit 1", "failed before"),
        Case("c", SKIP, "no such\nthing"),
        Case("d", PASS, note="failed before: exit 1"),
    ]
    return [Group("1234567 (room: Do #1)", 2), Group("suite", 4, note="a note")], [first, second]


def test_written_in_order() -> None:
    all_groups, cases = groups()
    for group, its in zip(all_groups, cases, strict=True):
        group.cases, group.over = its, True
    text: list[str] = []
    Writer(text.append, all_groups).update()
    assert "".join(text) == WHOLE


def test_written_as_it_comes() -> None:
    """In any order that results come in, and each line once; those of the first group at once."""
    all_groups, (first, second) = groups()
    text: list[str] = []
    writer = Writer(text.append, all_groups)
    all_groups[1].cases.extend(second)
    all_groups[1].over = True
    writer.update()
    assert "".join(text).endswith("1..2\n")
    for case in first:
        all_groups[0].cases.append(case)
        writer.update()
        assert f" {case.name}\n" in "".join(text)
    assert "suite" not in "".join(text)
    all_groups[0].over = True
    writer.update()
    assert "".join(text) == WHOLE


def test_a_group_that_did_not_run() -> None:
    group = Group("nothing", 1, [Case("a", SKIP, "no kernel")], over=True)
    text: list[str] = []
    Writer(text.append, [group]).update()
    assert "".join(text).endswith("  ok 1 a # SKIP no kernel\nok 1 nothing # SKIP no kernel\n")


def test_read_back() -> None:
    assert [(line.depth, line.ok, line.name) for line in parse(WHOLE)] == [
        (1, True, "kernel half builds"),
        (1, False, "unit tests"),
        (0, False, "1234567 (room: Do 1)"),
        (1, True, "a"),
        (1, False, "b"),
        (1, True, "c"),
        (1, True, "d"),
        (0, True, "suite"),
    ]
    assert [line.name for line in parse(WHOLE) if line.failed] == ["unit tests", "1234567 (room: Do 1)"]


def test_what_others_write() -> None:
    text = "TAP version 13\n1..3\nnoise\nok 1 - with a dash\nnot ok 2 x # XFAIL hm\nok 3 # SKIP no name\nnot ok\n"
    assert parse(text) == [
        Line(0, True, 1, "with a dash"),
        Line(0, False, 2, "x", "XFAIL"),
        Line(0, True, 3, "", "SKIP"),
    ]
