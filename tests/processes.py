# SPDX-License-Identifier: GPL-2.0-only
"""What /proc says of a test's own processes: those below one, and when they have ended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def status_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5)); nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def ended(pid: int) -> bool:
    """Reaped or not, and its threads too, which may outlive the first one: num_threads is the 18th field."""
    status = status_of(pid)
    return not status or (status[0] == "Z" and int(status[17]) <= 1)


def all_ended(pids: Iterable[int], seconds: float = 10) -> bool:
    """Whether they have ended, as soon as they have: the kernel kills a child with its parent, but not at once."""
    deadline = time.monotonic() + seconds
    while not (done := all(map(ended, pids))) and time.monotonic() < deadline:
        time.sleep(0.002)
    return done


def children(pid: int) -> list[int]:
    """All processes below `pid`, at any depth."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
    return found
