# SPDX-License-Identifier: GPL-2.0-only
"""A command's three streams: every byte both ways, and ends that come early, on each side."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from stack.run.hosted import SECONDS, command, sh
from unikvm.errors import CANNOT_RUN
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER

MIB = 1 << 20
SIZE = 16 * MIB  # each way; 100 MB take 20 s, see Documentation/guest-init.md
SIGPIPE = 119  # what a run says of a status of 128 + 13


def guest(script: str, *options: str) -> str:
    return command("-q", *options, "--", "sh", "-c", script)


def test_many_megabytes_are_exact_through_the_host_vm() -> None:
    """As a user types it, all the way from a file of the machine and back."""
    data = os.urandom(SIZE)
    argv = [LAUNCHER, "run", "--host", "vm", "-q", "--", "sh", "-c", "echo problems >&2; cat"]
    done = subprocess.run(argv, input=data, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"problems\n")
    assert done.stdout == data


def test_a_pipeline_whose_end_closes_first() -> None:
    """`yes | head`: the command finds out as it would without a guest in between, through both of them."""
    argv = [LAUNCHER, "run", "--host", "vm", "-q", "--", "sh", "-c", "yes; echo $? >&2; exit 5"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (5, b"141\n")


@pytest.fixture(scope="module")
def data(host: HostVm) -> str:
    """A file of the host VM that is larger than all buffers on the way."""
    assert sh(host, f"head -c {8 * MIB} /dev/urandom > /tmp/data").status == 0
    return "/tmp/data"


@pytest.mark.parametrize("feed", ["{guest} < {data}", "cat {data} | {guest} | cat"])
def test_files_and_pipes(host: HostVm, data: str, feed: str) -> None:
    done = sh(host, f"{feed.format(guest=guest('cat'), data=data)} | cmp - {data}")
    assert (done.status, done.stdout, done.stderr) == (0, b"", b"")


def test_the_command_takes_only_some_of_its_input(host: HostVm, data: str) -> None:
    first = guest("head -c 5")
    closed = guest("exec <&-; sleep 1; echo end")
    done = sh(host, f"{first} < {data} | cmp -n 5 - {data} && yes | {closed}")
    assert (done.status, done.stdout, done.stderr) == (0, b"end\n", b"")


def test_no_input_at_all(host: HostVm) -> None:
    script = guest("cat; echo end; echo error >&2")
    done = sh(host, f"{script} < /dev/null; {script} <&-")
    assert (done.status, done.stdout, done.stderr) == (0, b"end\n" * 2, b"error\n" * 2)


def test_output_that_goes_nowhere(host: HostVm) -> None:
    """Closed, or with nobody at the other end: the status stays the command's."""
    done = sh(host, f"{guest('echo text; exit 3')} >&-; echo $?; {guest('echo text >&2; exit 4')} 2>&-; echo $?")
    assert (done.stdout, done.stderr) == (b"3\n4\n", b"")
    loud = command("--", "sh", "-c", "yes >&2")
    done = sh(host, f"{{ {loud} 2>&1 >/dev/null; echo $? > /tmp/status; }} | head -1; cat /tmp/status")
    assert done.stdout == b"y\n%d\n" % SIGPIPE


def test_a_full_disk_is_no_success(host: HostVm) -> None:
    done = sh(host, f"{command('--', 'echo', 'text')} > /dev/full")
    assert done.status == CANNOT_RUN
    assert b"stdout cannot be written: No space left on device" in done.stderr


def test_a_terminal_for_input_alone() -> None:
    """Typed lines arrive, and the end of the input; the output is a pipe."""
    master, slave = pty.openpty()
    argv = [LAUNCHER, "run", "--host", "vm", "-q", "--", "sh", "-c", "echo up; cat"]
    process = subprocess.Popen(argv, stdin=slave, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    os.write(master, b"typed\n\x04")
    assert process.communicate(timeout=SECONDS)[0] == b"typed\n"
    assert process.returncode == 0
    os.close(slave)
    os.close(master)
