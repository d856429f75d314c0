# SPDX-License-Identifier: GPL-2.0-only
"""Runs jobs in processes of their own, some at once, and hands what they tell to one thread."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from unikvm.campaign.processes import Pool, fed
from unikvm.check import step
from unikvm.check.case import Case
from unikvm.check.job import Job


@dataclass(frozen=True)
class News:
    """Of job `key`: a line of progress, a result, or its end (`error`: why it came early, or empty)."""

    key: str
    say: str = ""
    case: Case | None = None
    over: bool = False
    error: str = ""


class Runner(Protocol):
    """Where jobs run."""

    def submit(self, key: str, job: Job) -> object:
        """Start a job, or queue it."""

    def news(self) -> Iterator[News]:
        """What happens, as it does, until all that was submitted is over. Jobs may be submitted meanwhile."""


class LocalRunner:
    """`jobs` at once on this machine."""

    def __init__(self, jobs: int) -> None:
        self._queue: queue.Queue[News] = queue.Queue()
        self._running = 0
        self._pool = Pool(jobs, "check")

    def submit(self, key: str, job: Job) -> None:
        """See Runner."""
        self._running += 1
        self._pool.submit(self._run, key, job)

    def news(self) -> Iterator[News]:
        """See Runner."""
        while self._running:
            news = self._queue.get()
            self._running -= news.over
            yield news

    def _run(self, key: str, job: Job) -> None:
        error = "stopped"
        try:
            if not self._pool.stopped:
                error = self._communicate(key, job)
        except (OSError, ValueError, TypeError, KeyError) as failure:  # no process, or none of ours
            error = f"its process cannot be heard: {failure}"
        finally:
            self._queue.put(News(key, over=True, error=error))

    def _communicate(self, key: str, job: Job) -> str:
        """Hear the job's process; why it ended early, or an empty string."""
        failed = ""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            with fed(
                step.__file__, job.dump(), stdout=subprocess.PIPE, stderr=errors, started=self._pool.started
            ) as process:
                assert process.stdout
                for line in process.stdout:
                    told = json.loads(line)
                    failed = told.get("failed", failed)
                    case = Case(**told["case"]) if "case" in told else None
                    self._queue.put(News(key, told.get("say", ""), case))
                process.wait()
            if process.returncode and not failed:
                errors.seek(0)
                lines = errors.read().strip().splitlines() or [f"status {process.returncode}"]
                failed = f"its process ended early: {lines[-1]}"
        return failed

    def close(self) -> None:
        """End what runs."""
        self._pool.close()
