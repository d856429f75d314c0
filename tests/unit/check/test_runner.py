# SPDX-License-Identifier: GPL-2.0-only
"""What a job's process tells comes through, and its early end is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.check import step
from unikvm.check.case import Case
from unikvm.check.job import HERE, Job, Task
from unikvm.check.runner import LocalRunner, News

JOB = Job("/r", "/f", "c", "k", (Task("t", HERE, ("true",)),))


def news_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, jobs: int = 1) -> list[News]:
    """Of `jobs` jobs at once whose process is `program`."""
    (tmp_path / "step.py").write_text(program)
    monkeypatch.setattr(step, "__file__", str(tmp_path / "step.py"))
    runner = LocalRunner(jobs)
    try:
        for number in range(jobs):
            runner.submit(str(number), JOB)
        return list(runner.news())
    finally:
        runner.close()


def test_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = """
import json, sys
assert json.load(sys.stdin)["commit"] == "c"
print(json.dumps({"say": "t"}))
print(json.dumps({"case": {"name": "t", "verdict": "pass", "seconds": 1.5}}))
"""
    assert news_of(monkeypatch, tmp_path, program) == [
        News("0", say="t"),
        News("0", case=Case("t", "pass", seconds=1.5)),
        News("0", over=True),
    ]
    assert sum(news.over for news in news_of(monkeypatch, tmp_path, program, jobs=3)) == 3


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import sys; sys.stdin.read(); sys.exit('boo')", "its process ended early: boo"),
        ("import os, sys; sys.stdin.read(); os.kill(os.getpid(), 9)", "its process ended early: status -9"),
        ('import sys; sys.stdin.read(); print(\'{"failed": "no kernel"}\')', "no kernel"),
        ("import sys; sys.stdin.read(); print('noise')", "its process cannot be heard: Expecting value"),
        ('import sys; sys.stdin.read(); print(\'{"case": {"x": 1}}\')', "its process cannot be heard: "),
    ],
)
def test_early_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, error: str) -> None:
    last = news_of(monkeypatch, tmp_path, program)[-1]
    assert last.over
    assert last.error.startswith(error)
