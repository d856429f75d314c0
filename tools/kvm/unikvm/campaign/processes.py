# SPDX-License-Identifier: GPL-2.0-only
"""Jobs in processes of their own: a Python program of ours is fed a job, and ended with whoever waits for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
Stream = int | IO[str]
Started = set[subprocess.Popen[str]]


@contextmanager
def fed(
    program: str, job: str, *, stdout: Stream, stderr: Stream, started: Started | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run `program` (a file) with `job` as its whole input; it is killed at the end, where it has not ended by itself.

    `started`: it is in there while it runs, for whoever must end it from another thread.
    """
    processes: Started = set() if started is None else started
    command = [sys.executable, "-I", "-S", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, text=True, errors="replace"
    ) as process:
        processes.add(process)
        try:
            assert process.stdin
            with suppress(BrokenPipeError), process.stdin:  # ended before it had read its job: its status tells
                process.stdin.write(job)
            yield process
        finally:
            process.kill()
            processes.discard(process)


class Pool:
    """`count` threads that wait for such processes. `started`: those that run; `stopped`: no more are to be."""

    def __init__(self, count: int, name: str) -> None:
        self.started: Started = set()
        self.stopped = False
        self._threads = ThreadPoolExecutor(count, name)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **keywords: _P.kwargs) -> Future[_T]:
        """Have a thread do `work`, or queue it."""
        return self._threads.submit(work, *args, **keywords)

    def close(self) -> None:
        """End what runs."""
        self.stopped = True
        for process in list(self.started):
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
