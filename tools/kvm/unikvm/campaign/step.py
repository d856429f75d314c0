# SPDX-License-Identifier: GPL-2.0-only
"""One run of a test: a commit's halves are built, a host VM is booted with its kernel half, and the test runs in it.

Runs in a process of its own (`python3 step.py` reads a Job as JSON and writes a Result), so that it can be ended, and
so that a defect of one run is not the campaign's end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass

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
from unikvm.campaign.verdict import FAIL, SKIP, Result
from unikvm.campaign.worktree import environment, locked, worktree
from unikvm.errors import UnikvmError
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.hostvm.watchdog import HostError
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import find_kernel
from unikvm.observe.reasons import module_parameters

KEPT_OUTPUT = 256 << 10  # bytes of a test's output, the end of it
KEPT_CONSOLE = 64 << 10
ATTEMPTS = 2  # of a run whose host VM hangs or cannot be had


@dataclass(frozen=True)
class Job:
    """What to run. `repository` and `folder` (for worktrees) are paths.

    `kernel` is the host's, as find_kernel takes it, or `linux:SHA` of the tree `linux`, built with `linux_config` (a
    minimal one where that is empty). `timeout` in seconds for the test alone; None: none.
    """

    repository: str
    folder: str
    commit: str
    kernel: str
    command: tuple[str, ...]
    cwd: str = "/"
    timeout: float | None = None
    shares: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    kernel_half: bool = True  # whether it is built and loaded
    guest_kernel: str = ""  # a package that the test's guests boot
    linux: str = ""
    linux_config: str = ""
    patience: float = 1.0
    attempts: int = ATTEMPTS

    def dump(self) -> str:
        """JSON for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Job:
        """The job that `dump` wrote."""
        fields = json.loads(text)
        for name in ("command", "shares"):
            fields[name] = tuple(fields[name])
        fields["env"] = tuple((name, value) for name, value in fields["env"])
        return cls(**fields)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 3)


def say(text: str) -> None:
    """A line of progress, for the log."""
    print(text, file=sys.stderr, flush=True)


def run(job: Job) -> Result:
    """Build and test. What is no fault of the test is tried again, and then a skip: never a verdict."""
    clock = _Clock()
    result = Result(SKIP, "it was not tried")
    for attempt in range(1, job.attempts + 1):
        try:
            result = _attempt(job, clock)
        except builds.BuildFailed as error:
            result = Result(SKIP, error.message, output=error.log)
            attempt = job.attempts  # the compiler will not think better of it
        except HostError as error:
            if error.kind == "host-panic":
                result = Result(FAIL, "host-panic", error.outcome, console=error.console)
            else:
                result = Result(SKIP, error.message, console=error.console, accident=True)
        except UnikvmError as error:
            result = Result(SKIP, str(error), accident=True)
        result.tries = attempt
        if result.verdict != SKIP or attempt >= job.attempts:
            break
        say(f"{result.reason}; trying once more")
    if result.verdict == FAIL:
        result.signature = verdict.signature_of(result.reason, result.output, result.console)
    result.seconds = clock.seconds
    return result


def _attempt(job: Job, clock: _Clock) -> Result:
    repository = Repository(job.repository)
    with clock.phase("host kernel"):
        kernel = host_kernel(job.kernel, job.linux, job.linux_config, say)
        if job.guest_kernel:
            find_kernel(job.guest_kernel, progress=say)  # into the cache: a host VM has no network

    def headers() -> AbstractContextManager[str]:
        return headers_of(job.kernel, job.linux, job.linux_config, kernel, say)

    kernel_content, user_content = repository.content(job.commit)
    with clock.phase("check-out"), locked(job.folder, "checkout"):
        tree = worktree(repository, job.folder, job.commit)
    with clock.phase("build"), locked(job.folder, job.commit):
        module = builds.kernel_half(tree, kernel_content, kernel, headers, say) if job.kernel_half else None
        builds.user_half(tree, user_content, say)
    host = HostVm(HostConfig(kernel=kernel, init=init_binary(), shares=job.shares, patience=job.patience), say=say)
    with clock.phase("boot"):
        host.start()
    with closing(host):
        try:
            if module:
                host.insmod(module, module_parameters(kernel))
        except HostError:
            raise
        except UnikvmError as error:  # this kernel half is not for this kernel, or refuses it: that is what is tested
            return Result(FAIL, f"insmod: {error.message}", console=host.console_tail(KEPT_CONSOLE))
        with clock.phase("test"):
            return _test(job, host, tree)


def _test(job: Job, host: HostVm, tree: str) -> Result:
    output = Output(KEPT_OUTPUT)
    env = environment(tree, job.commit, host.config.kernel.release) | dict(job.env)
    try:
        end = execute(host, job.command, output, cwd=job.cwd, env=env, timeout=job.timeout)
    except HostError as error:
        if error.kind != "host-panic":
            raise
        return Result(FAIL, "host-panic", error.outcome, output=output.text, console=error.console)
    text = output.text
    kind, reason = verdict.of_status(end.shell_status, end.timed_out, text)
    return Result(kind, reason, end.shell_status, output=text, console=host.console_tail(KEPT_CONSOLE))


def main() -> None:
    """Read a Job, write a Result."""
    from unikvm.sys.process import end_with_parent

    end_with_parent()
    job = Job.load(sys.stdin.read())
    os.makedirs(job.folder, exist_ok=True)
    try:
        result = run(job)
    except OSError as error:
        result = Result(SKIP, f"{error.filename or 'error'}: {error.strerror}", accident=True)
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
