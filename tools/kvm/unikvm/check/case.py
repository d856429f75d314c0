# SPDX-License-Identifier: GPL-2.0-only
"""One test's end, and what it says beside the same test's end before the change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unikvm.campaign.verdict import FAIL, PASS, SKIP

KNOWN = "known"  # it fails, and did before: no change, so no failure of the range


@dataclass(frozen=True)
class Case:
    """`verdict` is pass, fail, skip or known; `reason` one line: why it failed or was skipped; `note` what else there
    is to say; `seconds` of the test alone; `accident`: it was skipped for what is no fault of the commit."""

    name: str
    verdict: str
    reason: str = ""
    note: str = ""
    seconds: float = 0.0
    output: str = ""
    accident: bool = False
    log: str = ""  # the file that the output was written to

    @property
    def says(self) -> str:
        """Reason and note in one."""
        return "; ".join(part for part in (self.reason, self.note) if part)


def compared(before: Case | None, after: Case) -> Case:
    """`after`, judged by what has changed. `before`: None where there is no result before."""
    if after.verdict == PASS:
        note = f"failed before: {before.reason}" if before and before.verdict == FAIL else ""
        return replace(after, note=_both(after.note, note))
    if after.verdict == FAIL:
        if before is None:
            return replace(after, note=_both(after.note, "no result before"))
        if before.verdict == FAIL:
            same = "" if before.reason == after.reason else f", with {before.reason}"
            return replace(after, verdict=KNOWN, note=_both(after.note, f"failed before{same}"))
        word = "passed before" if before.verdict == PASS else f"was skipped before: {before.reason}"
        return replace(after, note=_both(after.note, word))
    if (
        before and before.verdict == PASS and not after.accident
    ):  # a test that does not run any more is no better than one that fails
        return replace(after, verdict=FAIL, note=_both(after.note, "passed before"))
    return after


def confirmed(first: Case, again: Case) -> Case:
    """A change for the worse that was looked at once more: only one that comes twice is one."""
    if again.verdict == PASS:
        return replace(again, note=_both(again.note, f"failed once and passed once more: {first.reason}"))
    return first


def beside_qemu(case: Case, qemu: Case | None) -> Case:
    """`case` with a note where QEMU on the same host ends otherwise, or fails as well."""
    if qemu is None or SKIP in (case.verdict, qemu.verdict):
        return case
    if case.verdict == PASS:
        note = f"QEMU fails it: {qemu.reason}" if qemu.verdict == FAIL else ""
    else:
        note = "QEMU passes it on the same host" if qemu.verdict == PASS else f"QEMU fails it too: {qemu.reason}"
    return replace(case, note=_both(case.note, note))


def _both(one: str, other: str) -> str:
    return "; ".join(part for part in (one, other) if part)


def counts(cases: list[Case]) -> dict[str, int]:
    """How many of each verdict."""
    return {verdict: sum(case.verdict == verdict for case in cases) for verdict in (PASS, FAIL, KNOWN, SKIP)}


def worst(cases: list[Case]) -> str:
    """The verdict of a group: one failure fails it, known ones do not; a skip where nothing was run."""
    count = counts(cases)
    return FAIL if count[FAIL] else PASS if count[PASS] or count[KNOWN] else SKIP
