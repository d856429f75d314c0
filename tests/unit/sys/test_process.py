# SPDX-License-Identifier: GPL-2.0-only
"""Children that cannot outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from processes import all_ended, ended
from unikvm.errors import CannotRun
from unikvm.sys.process import spawn


def test_status_and_log() -> None:
    process = spawn(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    assert process.wait(10) == 3
    assert process.log_text() == "out\nerr"
    process.close()


def test_signal_dispositions_are_default() -> None:
    process = spawn(["/bin/sh", "-c", "kill -PIPE $$"])
    assert process.wait(10) == -signal.SIGPIPE
    process.close()


def test_only_named_descriptors_are_inherited() -> None:
    read, write = os.pipe()
    process = spawn(["/bin/sh", "-c", "ls /proc/self/fd"], fds=[write])
    process.wait(10)
    numbers = set(map(int, process.log_text().split()))
    process.close()
    os.close(read)
    os.close(write)
    assert write in numbers
    assert read not in numbers


def test_missing_program() -> None:
    with pytest.raises(CannotRun, match=r"cannot start /no/such: .*No such file"):
        spawn(["/no/such"])


def test_preparation_that_fails() -> None:
    def prepare() -> None:
        raise PermissionError(1, "not today")

    with pytest.raises(CannotRun, match="not today"):
        spawn(["true"], prepare=prepare)


def test_close_ends_a_stopped_child() -> None:
    process = spawn(["sleep", "60"])
    os.kill(process.pid, signal.SIGSTOP)
    process.close()
    assert process.poll() == -signal.SIGKILL


def test_kill_9_of_the_parent_ends_the_child() -> None:
    script = (
        "import time; from unikvm.sys.process import spawn\n"
        "print(spawn(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        assert not ended(pid)
        front.kill()
    assert all_ended([pid])
