# SPDX-License-Identifier: GPL-2.0-only
"""Runs jobs in processes of their own, some at once, and hands what they tell to one thread."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

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


@dataclass
class LocalRunner:
    """`jobs` at once on this machine."""

    jobs: int
    _queue: queue.Queue[News] = field(default_factory=queue.Queue)
    _started: set[subprocess.Popen[str]] = field(default_factory=set)
    _running: int = 0
    _stopped: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.jobs, "check")

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
            if not self._stopped:
                error = self._communicate(key, job)
        except (OSError, ValueError, TypeError, KeyError) as failure:  # no process, or none of ours
            error = f"its process cannot be heard: {failure}"
        finally:
            self._queue.put(News(key, over=True, error=error))

    def _communicate(self, key: str, job: Job) -> str:
        """Feed and hear the job's process; why it ended early, or an empty string."""
        failed = ""
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
            subprocess.Popen(
                [sys.executable, "-I", "-S", step.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
            ) as process,
        ):
            self._started.add(process)
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(job.dump())
                process.stdin.close()
                for line in process.stdout:
                    told = json.loads(line)
                    failed = told.get("failed", failed)
                    case = Case(**told["case"]) if "case" in told else None
                    self._queue.put(News(key, told.get("say", ""), case))
                process.wait()
            finally:
                process.kill()  # where this came early
                self._started.discard(process)
            if process.returncode and not failed:
                errors.seek(0)
                lines = errors.read().strip().splitlines() or [f"status {process.returncode}"]
                failed = f"its process ended early: {lines[-1]}"
        return failed

    def close(self) -> None:
        """End what runs."""
        self._stopped = True
        for process in list(self._started):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
