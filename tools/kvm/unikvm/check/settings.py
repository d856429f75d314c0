# SPDX-License-Identifier: GPL-2.0-only
"""What a check was asked for, resolved; and the folder in which it works and keeps its logs."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass

from unikvm.check.job import HERE, HOST, Task
from unikvm.errors import CannotRun

KEPT = 10  # checks whose logs are kept
UNIT_TESTS = ("tests/unit", "tests/style")


@dataclass(frozen=True)
class Settings:
    """Commits by their SHA, kernels by release or path. `commits` are the range, parents first; `base` is before it.

    `here` are commands for this machine (None: the commit's own unit and style tests), `host` for the host VM, with
    their names. `kernel_before`: the host kernel of the suites' run before the range.
    """

    source: str  # a directory in the developer's repository
    base: str
    commits: tuple[str, ...]
    kernel: str
    release: str  # of that kernel
    kernel_before: str
    host: tuple[tuple[str, tuple[str, ...]], ...]
    here: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    linux: str = ""  # a directory in the Linux tree that kernels named `linux:SHA` are of
    linux_config: str = ""
    cwd: str = "/"
    previous: str = ""  # the release before; empty: the ABI is not checked
    unit_tests: str = ""  # a tree of kvm-unit-tests
    selftests: str = ""  # a Linux tree, or `linux-source`
    only: tuple[str, ...] = ()  # patterns of the suites' tests
    nested_paging: tuple[bool, ...] = (True, False)
    qemu: bool = True
    timeout: float = 600.0  # seconds, of a test of a commit
    suite_timeout: float = 60.0  # of a test of a suite
    shares: tuple[str, ...] = ()
    jobs: int = 1

    @property
    def head(self) -> str:
        """The last commit of the range."""
        return self.commits[-1]


def tests_here(settings: Settings, present: tuple[str, ...]) -> list[Task]:
    """The tests of a commit on this machine; `present` are those of UNIT_TESTS that it has."""
    if settings.here is not None:
        return [Task(name, HERE, command, timeout=settings.timeout) for name, command in settings.here]
    command = ("build/venv/bin/python3", "-m", "pytest", "-q", *present)
    skip = "" if present else "it has no tests/unit"
    return [Task("unit and style tests", HERE, command, timeout=settings.timeout, skip=skip)]


def tests_in_host(settings: Settings) -> list[Task]:
    """The tests of a commit in the host VM."""
    return [Task(name, HOST, command, cwd=settings.cwd, timeout=settings.timeout) for name, command in settings.host]


def home() -> str:
    """Where checks are kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "unikvm", "check")


def new_folder() -> str:
    """A folder for a new check; the oldest ones go. CannotRun where there can be none."""
    path = os.path.join(home(), f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    try:
        os.makedirs(os.path.join(path, "logs"))
        os.makedirs(os.path.join(path, "trees"))
    except OSError as error:
        raise CannotRun(
            f"cannot write to {path}: {error.strerror}", hint="XDG_STATE_HOME names another place"
        ) from error
    for name in sorted(os.listdir(home()))[:-KEPT]:
        shutil.rmtree(os.path.join(home(), name), ignore_errors=True)
    return path


def tidy(folder: str) -> None:
    """Remove what a check needs no more once it is over."""
    for name in ("trees", "repository.git"):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
