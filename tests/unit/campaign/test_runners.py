# SPDX-License-Identifier: GPL-2.0-only
"""A job in a process of its own: what it says, and how it is ended."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from unikvm.campaign import step
from unikvm.campaign.runners import LocalRunner, run_apart
from unikvm.campaign.step import Job
from unikvm.campaign.verdict import PASS, SKIP


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "none.git"), str(tmp_path / "trees"), "0" * 40, "6.1.0-1-none", ("true",), attempts=1)


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """In place of step.py."""
    path = tmp_path / "program.py"
    path.write_text(text)
    monkeypatch.setattr(step, "__file__", str(path))


def test_what_cannot_run_is_an_accident(job: Job) -> None:
    result = run_apart(job)
    assert (result.verdict, result.accident) == (SKIP, True)


def test_result_and_progress(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        monkeypatch,
        "import json, sys\n"
        "job = json.load(sys.stdin)\n"
        "print('at work', file=sys.stderr)\n"
        "json.dump({'verdict': 'pass', 'output': 'x' * 300_000, 'reason': job['kernel']}, sys.stdout)\n",
    )
    said: list[str] = []
    result = run_apart(job, told=said.append)
    assert (result.verdict, len(result.output), result.reason) == (PASS, 300_000, "6.1.0-1-none")
    assert said == ["at work"]


@pytest.mark.parametrize("length", [1, 1 << 20])
def test_a_job_that_dies(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Before it has read what it is to do, which is more than a pipe holds or not."""
    program(tmp_path, monkeypatch, "raise SystemExit('no more')")
    result = run_apart(replace(job, command=("true", "x" * length)))
    assert (result.verdict, result.reason, result.accident) == (SKIP, "the step ended early: no more", True)


def test_closing_ends_what_runs(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "import sys, time\nprint('here', file=sys.stderr, flush=True)\ntime.sleep(60)")
    here = threading.Event()
    runner = LocalRunner(1, lambda _line: here.set())
    future = runner.submit(job)
    assert here.wait(20)
    before = time.monotonic()
    runner.close()
    assert time.monotonic() - before < 10
    assert future.result().accident


def test_jobs_survive_json(job: Job) -> None:
    assert Job.load(job.dump()) == job
