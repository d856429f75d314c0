# SPDX-License-Identifier: GPL-2.0-only
"""What a bisection found: as text, JSON, JUnit and a self-contained page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from unikvm.bisect.session import Answer, Finding
from unikvm.bisect.store import Row, Store
from unikvm.bisect.trials import Tally
from unikvm.campaign.git import Repository
from unikvm.campaign.linux import PREFIX
from unikvm.campaign.verdict import FAIL, PASS, printable
from unikvm.errors import CannotRun

HALVES = ("kernel half", "user half")


def summary(answer: Answer, store: Store, seconds: float) -> dict[str, Any]:
    """Everything as plain data."""
    settings = store.settings
    return {
        "name": store.name,
        "command": list(settings.command),
        "good": list(settings.good),
        "bad": settings.bad,
        "host_kernels": list(settings.kernels),
        "narrowed": answer.narrowed,
        "findings": [
            {
                "axis": found.axis,
                "first_bad": found.first_bad if found.narrowed else None,
                "suspects": [
                    {"version": version, "label": found.labels[version], "probability": round(share, 6)}
                    for version, share in found.suspects
                ],
            }
            for found in answer.findings
        ],
        "attribution": {
            "text": answer.attribution.text,
            "causes": [sorted(cause) for cause in answer.attribution.causes],
            "parts": answer.parts,
            "cells": [
                {
                    "new": sorted(parts),
                    "verdict": tally.verdict,
                    "failed": tally.failed,
                    "passed": tally.passed,
                    "skipped": tally.skipped,
                }
                for parts, (_, tally) in answer.cells.items()
            ],
        },
        "rates": None if answer.rates is None else {"bad": answer.rates[0], "good": answer.rates[1]},
        "runs": [_run(row) for row in store.rows],
        "seconds": round(seconds, 1),
        "folder": store.folder,
    }


def _run(row: Row) -> dict[str, Any]:
    result = row.result
    return {
        "number": row.number,
        "role": row.role,
        "host_kernel": row.kernel,
        "user_half": row.user,
        "kernel_half": row.half,
        "verdict": result.verdict,
        "reason": result.reason,
        "status": result.status,
        "signature": result.signature,
        "tries": result.tries,
        "seconds": result.seconds,
        "log": row.log,
    }


def shown(found: Finding, repository: Repository, linux: Repository | None) -> str:
    """The first bad commit as git shows it; empty for a packaged kernel."""
    if found.axis == "commit":
        return repository.show(found.first_bad)
    return linux.show(found.first_bad.removeprefix(PREFIX)) if linux is not None else ""


def text(answer: Answer, store: Store, repository: Repository, linux: Repository | None = None) -> str:
    """For the terminal: the first bad version as git bisect says it, and which part it is."""
    lines: list[str] = []
    for found in answer.findings:
        if found.narrowed:
            lines.append(f"{found.first_bad.removeprefix(PREFIX)} is the first bad {found.axis}")
            lines += shown(found, repository, linux).rstrip().splitlines()
            lines.append("")
        else:
            lines.append(f"The first bad {found.axis} could be any of:")
            lines += [f"  {found.labels[version]}" for version, _ in found.suspects] + [""]
        if store.settings.flaky:
            lines += [f"  {share:8.3%}  {found.labels[version]}" for version, share in found.suspects] + [""]
    if answer.rates:
        bad, good = answer.rates
        lines.append(f"failure rate from the first bad version on: {bad:.1%}; before it: {good:.1%}")
    lines += _matrix(answer)
    if answer.cells:
        same = [part for part in HALVES if part not in answer.parts]
        if same and len(answer.parts) == 1 and answer.parts[0] in HALVES:
            lines.append(f"the {same[0]} is the same before and after")
        lines.append(f"broken by: {answer.attribution.text}")
        if answer.attribution.unknown:
            lines.append("(some combinations could not be run: less may be enough to break it)")
    return "\n".join(lines)


def _matrix(answer: Answer) -> list[str]:
    if not answer.cells:
        return []
    rows = [(*answer.parts, "")]
    for parts, (_, tally) in answer.cells.items():
        rows.append((*("new" if part in parts else "old" for part in answer.parts), outcome(tally)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows] + [
        ""
    ]


def outcome(tally: Tally) -> str:
    """A cell of the matrix in words, with counts."""
    total = tally.failed + tally.passed
    if not total:
        return f"cannot be run: {tally.skipped}" if tally.skipped else "not run"
    if total == 1:
        return "fails" if tally.failed else "passes"
    return f"fails in {tally.failed} of {total} runs"


def junit(answer: Answer, store: Store) -> bytes:
    """A test case a run, and one for the answer, which fails when a first bad version was found."""
    try:
        from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite
    except ImportError:
        raise CannotRun("--junit needs the Python package junitparser", hint="pip install junitparser") from None
    suite = TestSuite(f"unikvm bisect {store.name}")
    for row in store.rows:
        case = TestCase(f"{row.user[:12]} on {row.kernel}", f"bisect.{row.role.replace(' ', '_')}", row.result.total)
        if row.half != row.user:
            case.name += f", kernel half of {row.half[:12]}"
        if row.result.verdict == FAIL:
            case.result = [Failure(printable(row.result.reason), printable(row.result.signature))]
        elif row.result.verdict != PASS:
            case.result = [Skipped(printable(row.result.reason))]
        suite.add_testcase(case)
    xml = JUnitXml("unikvm bisect")
    xml.add_testsuite(suite)
    return bytes(xml.tostring())  # type: ignore[no-untyped-call]


def picture(store: Store, order: Sequence[str]) -> dict[str, Any]:
    """Where the runs lie: a column for each commit that was run, in the order of `order`; a row for each host kernel.

    A run with halves of two commits is a column of its own, at the end.
    """
    places = {commit: number for number, commit in enumerate(order)}
    straight = sorted({row.user for row in store.rows if row.user == row.half}, key=lambda one: places.get(one, -1))
    crossed = sorted({(row.user, row.half) for row in store.rows if row.user != row.half})
    columns = [(commit, commit) for commit in straight] + crossed
    kernels = [name for name in store.settings.kernels if any(row.kernel == name for row in store.rows)]
    kernels += sorted({row.kernel for row in store.rows} - set(kernels))
    cells = [
        (columns.index((row.user, row.half)), kernels.index(row.kernel), row.result.verdict, row.number)
        for row in store.rows
    ]
    return {"columns": columns, "kernels": kernels, "cells": cells}


def html(data: dict[str, Any], store: Store, answer: Answer, shows: Sequence[str], order: Sequence[str]) -> str:
    """A page that needs nothing beside it: answer, matrix, every run with its log. `order`: commits, parents first."""
    try:
        import jinja2
    except ImportError:
        raise CannotRun("the report needs the Python package jinja2", hint="pip install jinja2") from None
    with open(os.path.join(os.path.dirname(__file__), "report.html.j2"), encoding="utf-8") as file:
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(file.read())
    logs = {row.number: store.log(row) for row in store.rows}
    matrix = [
        (["new" if part in parts else "old" for part in answer.parts], outcome(tally), tally.verdict)
        for parts, (_, tally) in answer.cells.items()
    ]
    return template.render(
        data=data, logs=logs, matrix=matrix, parts=answer.parts, shows=shows, map=picture(store, order)
    )
