# SPDX-License-Identifier: GPL-2.0-only
"""Where steps run: in processes of this machine, or on the workers of a dask.distributed cluster.

Both are executors of concurrent.futures; a step's own process is below them in either case.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from unikvm.campaign import step
from unikvm.campaign.git import Repository
from unikvm.campaign.processes import Pool, Started, fed
from unikvm.campaign.step import Job
from unikvm.campaign.verdict import SKIP, Result
from unikvm.campaign.worktree import locked
from unikvm.errors import CannotRun

Say = Callable[[str], object]

LOG_TAIL = 2000  # characters of what a step's process said when it died


def _nobody(_line: str) -> None:
    """Nobody is told."""


def run_apart(job: Job, started: Started | None = None, told: Say = _nobody) -> Result:
    """Run a job in a process of its own. `told` gets its lines of progress.

    `started`: see processes.fed.
    """
    said: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        with fed(step.__file__, job.dump(), stdout=out, stderr=subprocess.PIPE, started=started) as process:
            assert process.stderr
            for line in process.stderr:
                said.append(line)
                told(line.rstrip())
            process.wait()
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
        self._pool = Pool(jobs, "step")

    def submit(self, job: Job) -> Future[Result]:
        """Start a job, or queue it."""
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> Result:
        if self._pool.stopped:
            return Result(SKIP, "stopped", accident=True)
        return run_apart(job, self._pool.started, self._told)

    def close(self) -> None:
        """End what runs."""
        self._pool.close()


def run_on_worker(job: Job, bundle: bytes) -> Result:
    """Run a job on a worker: in the worker's own folder, with the repository's bundle unpacked there once."""
    from distributed import get_worker

    folder = os.path.join(get_worker().local_directory, "unikvm")
    os.makedirs(folder, exist_ok=True)
    repository, packed = os.path.join(folder, "repository.git"), os.path.join(folder, "bundle")
    with locked(folder, "bundle"):
        if not os.path.exists(packed):
            with open(f"{packed}.new", "wb") as file:
                file.write(bundle)
            Repository.unbundle(repository, f"{packed}.new")
            os.rename(f"{packed}.new", packed)
    return run_apart(replace(job, repository=repository, folder=os.path.join(folder, "trees")))


class ClusterRunner:
    """Steps on a cluster's workers. A worker that dies loses its step, which runs again on another."""

    def __init__(self, address: str, bundle: bytes, retries: int = 5) -> None:
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
        self._bundle = bundle  # goes with each step: workers that come later have it too
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
