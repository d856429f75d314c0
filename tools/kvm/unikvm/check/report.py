# SPDX-License-Identifier: GPL-2.0-only
"""What a check found, as plain data, as JUnit, and in a line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from unikvm.campaign.verdict import FAIL, PASS, SKIP, printable
from unikvm.check.case import KNOWN, counts
from unikvm.check.groups import Tests
from unikvm.check.session import Session
from unikvm.errors import CannotRun


def summary(session: Session, seconds: float) -> dict[str, Any]:
    """Everything as plain data."""
    asked = session.settings
    bad = session.first_bad
    return {
        "base": asked.base,
        "commits": list(asked.commits),
        "host_kernel": asked.kernel,
        "host_kernel_before": asked.kernel_before,
        "previous": asked.previous or None,
        "verdict": session.verdict,
        "first_bad_commit": bad.sha if bad else None,
        "counts": counts(session.cases),
        "errors": session.errors,
        "groups": [
            {
                "name": group.name,
                "commit": (group.sha or None) if isinstance(group, Tests) else None,
                "note": group.note,
                "verdict": group.verdict,
                "cases": [
                    {key: value for key, value in asdict(case).items() if key != "output"} for case in group.cases
                ],
            }
            for group in session.groups
        ],
        "seconds": round(seconds, 1),
        "folder": session.folder,
    }


def junit(session: Session) -> bytes:
    """A suite a group; what failed before as well is skipped, as JUnit has no word for it."""
    try:
        from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite
    except ImportError:
        raise CannotRun("--junit needs the Python package junitparser", hint="pip install junitparser") from None
    xml = JUnitXml("unikvm check")
    for group in session.groups:
        suite = TestSuite(group.name)
        for case in group.cases:
            test = TestCase(case.name, f"check.{group.name}", case.seconds)
            if case.verdict == FAIL:
                failure = Failure(case.says)
                failure.text = printable(case.output)
                test.result = [failure]
            elif case.verdict == SKIP:
                test.result = [Skipped(case.says)]
            elif case.verdict == KNOWN:
                test.result = [Skipped(f"known: {case.says}")]
            elif case.note:
                test.system_out = case.note
            suite.add_testcase(test)
        xml.add_testsuite(suite)
    return bytes(xml.tostring())  # type: ignore[no-untyped-call]


def last_line(session: Session, seconds: float) -> str:
    """The result in a line: counts, the first commit that fails, and where the logs are."""
    count = counts(session.cases)
    words = [f"{count[PASS]} passed"]
    words += [
        f"{count[kind]} {word}" for kind, word in ((FAIL, "failed"), (KNOWN, "known"), (SKIP, "skipped")) if count[kind]
    ]
    text = (
        f"{_plural(len(session.settings.commits), 'commit')}, {_plural(len(session.cases), 'test')}: {', '.join(words)}"
    )
    bad = session.first_bad
    changed = [group for group in session.groups if group.verdict == FAIL and group is not bad]
    if bad:
        text += f"; first failing commit: {bad.name}: {_failed(bad)}"
    elif changed:
        text += f"; {changed[0].name}: {_failed(changed[0])}"
    elif session.errors:
        text += f"; {session.errors[0]}"
    return f"{text} ({seconds:.0f} s; {session.folder})"


def _failed(group: Any) -> str:
    case = next(case for case in group.cases if case.verdict == FAIL)
    return f"{case.name}: {case.says}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
