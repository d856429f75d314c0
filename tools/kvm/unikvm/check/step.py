# SPDX-License-Identifier: GPL-2.0-only
"""The tasks of one commit: its halves are built, commands run on this machine and in a host VM with its kernel half.

A process of its own (`python3 step.py` reads a Job as JSON), so that it can be ended, and so that its defects are not
the check's. It writes a line of JSON for each thing that happens: {"say": TEXT}, {"case": FIELDS} or {"failed": TEXT}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict

if __name__ == "__main__":  # as scripts/unikvm: nothing of the user's environment decides what runs
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[0] = os.path.dirname(os.path.dirname(_HERE))
    sys.path.append(
        os.path.join(_HERE, "../../../../build/venv/lib/python{}.{}/site-packages".format(*sys.version_info))
    )

from unikvm.campaign import builds, verdict
from unikvm.campaign.git import Repository
from unikvm.campaign.hosttest import Output, execute
from unikvm.campaign.linux import headers_of, host_kernel
from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.campaign.worktree import environment, locked, worktree
from unikvm.check import ends, guard
from unikvm.check.case import Case
from unikvm.check.job import BUILD_KERNEL, BUILD_USER, HERE, Job, Task
from unikvm.errors import UnikvmError
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.hostvm.watchdog import HostError
from unikvm.images.artifacts import init_binary
from unikvm.observe.reasons import module_parameters

KEPT_OUTPUT = 64 << 10  # bytes of a test's output, the end of it
KEPT_CONSOLE = 16 << 10
TRIES = 2  # of a test whose host VM hangs or dies
EMULATED = ("tcg", "icount")


class Unmet(Exception):
    """A task cannot be run: why, and whether that is a failure of the commit."""

    def __init__(self, kind: str, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.output = output


class Step:
    """Runs the tasks of `job`. `say` gets lines of progress."""

    def __init__(self, job: Job, say: Callable[[str], object]) -> None:
        self._job = job
        self._say = say
        self._repository = Repository(job.repository)
        self._kernel = host_kernel(job.kernel, job.linux, job.linux_config, say)
        self._contents = self._repository.content(job.commit)
        with locked(job.folder, "checkout"):
            self._tree = worktree(self._repository, job.folder, job.commit)
        self._environment = environment(self._tree, job.commit, self._kernel.release)
        self._module: str | Unmet | None = None
        self._user: Unmet | None = None
        self._user_built = False
        self._host: HostVm | None = None

    def close(self) -> None:
        """End the host VM."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def run(self, task: Task) -> Case:
        """One task to its end."""
        self._say(task.name)
        began = time.monotonic()
        accident = False
        if task.skip:
            return Case(task.name, SKIP, task.skip)
        try:
            kind, reason, output = self._run(task)
        except Unmet as unmet:
            kind, reason, output = unmet.kind, unmet.reason, unmet.output
        except HostError as error:
            kind, reason, output, accident = SKIP, f"{error.message} ({TRIES} times)", error.console, True
        except UnikvmError as error:
            kind, reason, output, accident = SKIP, str(error), "", True
        seconds = round(time.monotonic() - began, 3)
        return Case(task.name, kind, reason, seconds=seconds, output=output, accident=accident)

    def _run(self, task: Task) -> tuple[str, str, str]:
        if task.kind == BUILD_KERNEL:
            self._build_kernel()
            return PASS, "", ""
        if task.kind == BUILD_USER:
            self._build_user()
            return PASS, "", ""
        if task.kind == HERE:
            self._need(self._build_user)
            return self._run_here(task)
        self._need(self._build_kernel)
        self._need(self._build_user)
        return self._run_in_host(task)

    # Builds

    def _build_kernel(self) -> str:
        if self._module is None:
            try:
                with locked(self._job.folder, self._job.commit):
                    self._module = builds.kernel_half(
                        self._tree, self._contents[0], self._kernel, self._headers, self._say
                    )
            except builds.BuildFailed as error:
                self._module = Unmet(FAIL, error.message, error.log)
        if isinstance(self._module, Unmet):
            raise self._module
        return self._module

    def _headers(self) -> AbstractContextManager[str]:
        return headers_of(self._job.kernel, self._job.linux, self._job.linux_config, self._kernel, self._say)

    def _build_user(self) -> None:
        if not self._user_built:
            self._user_built = True
            try:
                with locked(self._job.folder, self._job.commit):
                    builds.user_half(self._tree, self._contents[1], self._say)
            except builds.BuildFailed as error:
                self._user = Unmet(FAIL, error.message, error.log)
        if self._user is not None:
            raise self._user

    def _need(self, build: Callable[[], object]) -> None:
        """What does not build is one failure: what would have run with it is skipped."""
        try:
            build()
        except Unmet as unmet:
            raise Unmet(SKIP, unmet.reason) from None

    # On this machine

    def _run_here(self, task: Task) -> tuple[str, str, str]:
        with tempfile.TemporaryFile() as output:  # no pipe: what the test leaves behind would hold it open
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *task.within(self._tree)],
                cwd=self._tree,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(task.timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
            output.seek(max(0, output.seek(0, os.SEEK_END) - KEPT_OUTPUT))
            text = output.read().decode("utf-8", "replace")
        if status is None:
            return FAIL, f"no end within {task.timeout:g} s", text
        if status < 0:
            return FAIL, f"signal {-status}", text
        return *ends.read(task.reads, status, text), text

    # In the host VM

    def _run_in_host(self, task: Task) -> tuple[str, str, str]:
        """One test; with another host VM where that hangs or dies. What hangs it again is a failure: an accident does
        not come twice at one place."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._exec(task)
            except HostError as error:
                self.close()
                if error.kind == "host-panic":
                    return FAIL, verdict.signature_of("host-panic", "", error.console), error.console
                if attempt == TRIES and error.kind == "host-hang":
                    return FAIL, f"{error.message} ({TRIES} times)", error.console
                if attempt == TRIES:
                    raise
                self._say(f"{error.message}; trying once more")
        raise AssertionError("unreachable")

    def _exec(self, task: Task) -> tuple[str, str, str]:
        host = self._hosted()
        for requirement in task.requires:
            path, _, value = requirement.partition("=")
            if host.exec(["cat", path], timeout=task.timeout).stdout.decode().strip() != value:
                raise Unmet(SKIP, f"{path} is not {value}")
        output = Output(KEPT_OUTPUT)
        command = task.within(self._tree)
        end = execute(host, command, output, cwd=task.cwd, env=self._environment, timeout=task.timeout)
        text = output.text
        if end.timed_out:
            slow = host.accel.kind in EMULATED
            return *ends.timed_out(task.reads, task.timeout, text, emulated=slow), text
        if end.signal:
            return FAIL, f"signal {end.signal}", text
        return *ends.read(task.reads, end.status, text), text

    def _hosted(self) -> HostVm:
        """The host VM with the commit's kernel half in it."""
        if self._host is not None:
            return self._host
        job = self._job
        config = HostConfig(
            kernel=self._kernel,
            init=init_binary(),
            memory=job.memory,
            shares=job.shares,
            nested_paging=job.nested_paging,
            patience=job.patience,
        )
        host = HostVm(config, say=self._say)
        host.start()
        self._host = host
        try:
            host.insmod(self._build_kernel(), module_parameters(self._kernel))
        except HostError:
            raise
        except UnikvmError as error:  # it is not for this kernel, or refuses it: that is a finding
            self._module = Unmet(FAIL, f"insmod: {error.message}", host.console_tail(KEPT_CONSOLE))
            self.close()
            raise self._module from None
        return host


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read a Job, write what happens."""
    from unikvm.sys.process import end_with_parent

    end_with_parent()
    job = Job.load(sys.stdin.read())
    os.makedirs(job.folder, exist_ok=True)
    step: Step | None = None
    try:
        step = Step(job, lambda text: _tell(say=text))
        for task in job.tasks:
            _tell(case=asdict(step.run(task)))
    except UnikvmError as error:
        _tell(failed=str(error))
    finally:
        if step is not None:
            step.close()


if __name__ == "__main__":
    main()
