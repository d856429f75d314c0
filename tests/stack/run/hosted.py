# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm run` on a host that is a host VM: what the tests of guests have in common."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

from unikvm.hostvm.host import Exit, HostVm
from unikvm.images.artifacts import LAUNCHER

SECONDS = 250.0
RUN = [LAUNCHER, "run", "--host", "local", "--no-kernel-half", "--timeout", "200"]


def run(host: HostVm, *arguments: str, cwd: str = "/", stdin: bytes = b"") -> Exit:
    """`unikvm run ARGUMENTS` in the host VM."""
    return host.exec([*RUN, *arguments], cwd=cwd, stdin=stdin, timeout=SECONDS)


def command(*arguments: str) -> str:
    """The same as a word of a shell script."""
    return shlex.join([*RUN, *arguments])


def sh(host: HostVm, script: str, *, stdin: bytes = b"") -> Exit:
    """A script in the host VM."""
    return host.exec(["sh", "-c", script], stdin=stdin, timeout=SECONDS)


def no_orphans(host: HostVm, name: str) -> Iterator[None]:
    """A fixture's body: however a run ended, its processes of that name ended with it."""
    yield
    end = time.monotonic() + 10
    while host.exec(["pgrep", name], timeout=20).status == 0:
        assert time.monotonic() < end, f"a {name} is left"
