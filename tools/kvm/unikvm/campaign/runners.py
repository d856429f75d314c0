# SPDX-License-Identifier: GPL-2.0-only
"""Where steps run: in processes of this machine, or on the workers of a dask.distributed cluster.

Both are executors of concurrent.futures; a step's own process is below them in either case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import IO

from unikvm.campaign import step
from unikvm.campaign.step import Job
from unikvm.campaign.verdict import SKIP, Result
from unikvm.errors import CannotRun

Say = Callable[[str], object]

LOG_TAIL = 2000  # characters of what a step's process said when it died


def _nobody(_line: str) -> None:
    """Nobody is told."""


def run_apart(job: Job, started: dict[int, subprocess.Popen[str]] | None = None, told: Say = _nobody) -> Result:
    """Run a job in a process of its own. `told` gets its lines of progress.

    `started`: the processes that run, by thread, for whoever must end them.
    """
    python = [sys.executable, "-I", "-S", step.__file__]
    said: list[str] = []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        subprocess.Popen(
            python, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdin
        assert process.stderr
        if started is not None:
            started[threading.get_ident()] = process
        try:
            with process.stdin:
                process.stdin.write(job.dump())
            for line in process.stderr:
                said.append(line)
                told(line.rstrip())
            process.wait()
        finally:
            process.kill()
            if started is not None:
                del started[threading.get_ident()]
        if process.returncode:
            why = said[-1].strip() if said else f"status {process.returncode}"
            return Result(SKIP, f"the step ended early: {why}", output="".join(said)[-LOG_TAIL:], accident=True)
        out.seek(0)
        return Result(**json.load(out))


class LocalRunner:
    """`jobs` steps at once on this machine. `told` gets lines of progress, on any thread."""

    def __init__(self, jobs: int, told: Say = _nobody) -> None:
        self.slots = jobs
        self._told = told
        self._pool: Executor = ThreadPoolExecutor(jobs, "step")
        self._started: dict[int, subprocess.Popen[str]] = {}
        self._stopped = False

    def submit(self, job: Job) -> Future[Result]:
        """Start a job, or queue it."""
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> Result:
        if self._stopped:
            return Result(SKIP, "stopped", accident=True)
        return run_apart(job, self._started, self._told)

    def close(self) -> None:
        """End what runs."""
        self._stopped = True
        for process in list(self._started.values()):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


def run_on_worker(job: Job, bundle: bytes) -> Result:
    """Run a job on a worker: in the worker's own folder, with the repository's bundle unpacked there once."""
    import fcntl

    from distributed import get_worker

    from unikvm.campaign.git import Repository

    folder = os.path.join(get_worker().local_directory, "unikvm")
    os.makedirs(folder, exist_ok=True)
    repository, packed = os.path.join(folder, "repository.git"), os.path.join(folder, "bundle")
    with open(os.path.join(folder, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(packed):
            with open(f"{packed}.new", "wb") as file:
                file.write(bundle)
            Repository.unbundle(repository, f"{packed}.new")
            os.rename(f"{packed}.new", packed)
    return run_apart(_moved(job, repository, os.path.join(folder, "trees")))


def _moved(job: Job, repository: str, folder: str) -> Job:
    from dataclasses import replace

    return replace(job, repository=repository, folder=folder)


class ClusterRunner:
    """Steps on a cluster's workers. A worker that dies loses its step, which runs again on another."""

    def __init__(self, address: str, bundle: IO[bytes], retries: int = 5) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise CannotRun(
                "--scheduler needs the Python package distributed", hint="pip install distributed"
            ) from None
        try:
            self._client = Client(address, timeout=30, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise CannotRun(f"no scheduler at {address}: {error}") from error
        self._executor = self._client.get_executor(pure=False, retries=retries)
        self._bundle = bundle.read()  # goes with each step: workers that come later have it too
        self.slots = max(1, sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> Future[Result]:
        """Send a job to a worker."""
        future: Future[Result] = self._executor.submit(run_on_worker, job, self._bundle)
        return future

    def close(self) -> None:
        """Take back what runs, and leave the cluster."""
        self._executor.shutdown(wait=False)
        self._client.close()


Runner = LocalRunner | ClusterRunner
