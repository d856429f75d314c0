# SPDX-License-Identifier: GPL-2.0-only
"""Before and after: changes for the worse are failures, and nothing else is."""

from __future__ import annotations

import pytest

from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check.case import KNOWN, Case, beside_qemu, compared, confirmed, worst


@pytest.mark.parametrize(
    ("before", "after", "verdict", "note"),
    [
        (PASS, PASS, PASS, ""),
        (FAIL, PASS, PASS, "failed before: why before"),
        (SKIP, PASS, PASS, ""),
        (None, PASS, PASS, ""),
        (PASS, FAIL, FAIL, "passed before"),
        (FAIL, FAIL, KNOWN, "failed before, with why before"),
        (SKIP, FAIL, FAIL, "was skipped before: why before"),
        (None, FAIL, FAIL, "no result before"),
        (PASS, SKIP, FAIL, "passed before"),
        (FAIL, SKIP, SKIP, ""),
        (SKIP, SKIP, SKIP, ""),
        (None, SKIP, SKIP, ""),
    ],
)
def test_compared(before: str | None, after: str, verdict: str, note: str) -> None:
    old = Case("t", before, "" if before == PASS else "why before") if before else None
    case = compared(old, Case("t", after, "" if after == PASS else "why"))
    assert (case.verdict, case.note) == (verdict, note)
    assert case.reason == ("" if after == PASS else "why")


def test_an_accident_is_no_change() -> None:
    after = Case("t", SKIP, "QEMU died", accident=True)
    assert compared(Case("t", PASS), after) == after


def test_the_same_failure_is_told_once() -> None:
    assert compared(Case("t", FAIL, "exit 1"), Case("t", FAIL, "exit 1")).says == "exit 1; failed before"


def test_confirmed() -> None:
    first = Case("t", FAIL, "exit 1", "passed before")
    assert confirmed(first, Case("t", FAIL, "exit 2")) == first
    assert confirmed(first, Case("t", SKIP, "no host VM")) == first
    again = confirmed(first, Case("t", PASS))
    assert (again.verdict, again.note) == (PASS, "failed once and passed once more: exit 1")


@pytest.mark.parametrize(
    ("ours", "theirs", "note"),
    [
        (PASS, PASS, ""),
        (PASS, FAIL, "QEMU fails it: their reason"),
        (FAIL, PASS, "QEMU passes it on the same host"),
        (KNOWN, FAIL, "QEMU fails it too: their reason"),
        (FAIL, SKIP, ""),
        (SKIP, PASS, ""),
    ],
)
def test_beside_qemu(ours: str, theirs: str, note: str) -> None:
    case = beside_qemu(Case("t", ours), Case("t", theirs, "their reason"))
    assert (case.verdict, case.note) == (ours, note)


def test_worst() -> None:
    def verdicts(*kinds: str) -> list[Case]:
        return [Case("t", kind) for kind in kinds]

    assert worst(verdicts(PASS, KNOWN, SKIP)) == PASS
    assert worst(verdicts(PASS, FAIL)) == FAIL
    assert worst(verdicts(KNOWN)) == PASS
    assert worst(verdicts(SKIP, SKIP)) == SKIP
    assert worst([]) == SKIP
