# SPDX-License-Identifier: GPL-2.0-only
"""A command's status comes through, and nothing of it outlives whoever asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from processes import all_ended, ended
from unikvm.check import guard

GUARD = [sys.executable, "-I", "-S", guard.__file__]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -SEGV $$"], -signal.SIGSEGV),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["/no/such/program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_status(command: list[str], status: int) -> None:
    done = subprocess.run(
        [*GUARD, *command], start_new_session=True, stderr=subprocess.DEVNULL, timeout=20, check=False
    )
    assert done.returncode == status


def test_it_ends_with_its_parent() -> None:
    code = (
        "import subprocess; "
        f"subprocess.Popen({[*GUARD, 'sh', '-c', 'sleep 600 & echo $!; wait']!r}, start_new_session=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        assert not ended(sleeper)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert all_ended([sleeper], 5)
