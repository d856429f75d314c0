# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm run` as its user types it, on a terminal and in pipes; the host VM is its own matter."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import all_ended, children
from unikvm.errors import CANNOT_RUN
from unikvm.images.artifacts import LAUNCHER

SECONDS = 120.0
RUN = [LAUNCHER, "run", "--host", "vm"]


class Terminal:
    """A user at a terminal on which `command` runs."""

    def __init__(self, command: list[str]) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 100))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True
        )
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def end(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was not restored"
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def shell(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """A shell in a guest; a parameter names its console."""
    terminal = Terminal([*RUN, "--console", getattr(request, "param", "virtio")])
    yield terminal
    terminal.close()


def test_a_shell_and_its_keys(shell: Terminal) -> None:
    shell.expect(b"# ")
    shell.type(b"echo $((6 * 7)); stty size; tty\r")
    shell.expect(b"\n42\r\n30 100\r\n/dev/hvc0\r\n")
    shell.type(b"\x01h")
    shell.expect(b"Ctrl-A x")
    shell.type(b"\x01x")
    assert shell.end() == 0


def test_a_disk_comes_to_a_guest_that_nobody_named(shell: Terminal, tmp_path: Path) -> None:
    """A terminal makes a guest reachable, and so a guest that devices come to."""
    shell.expect(b"# ")
    pid = str(shell.process.pid)
    listed = subprocess.run([LAUNCHER, "list"], capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    name = next(line.split()[0] for line in listed.splitlines() if line.split()[1] == pid)
    image = tmp_path / "disk.img"
    image.write_bytes(b"hello".ljust(1 << 20, b"\0"))
    argv = [LAUNCHER, "attach", name, "--disk", f"{image},ro"]
    assert subprocess.run(argv, capture_output=True, timeout=SECONDS, check=True).stdout.startswith(b"00:")
    shell.type(b"until head -c 5 /dev/vda | grep hello; do sleep 0.2; done 2>/dev/null\r")
    shell.expect(b"\nhello\r\n")
    shell.type(b"\x01x")
    assert shell.end() == 0


@pytest.mark.parametrize("shell", ["serial"], indirect=True)
def test_the_serial_console(shell: Terminal) -> None:
    shell.expect(b"# ")
    shell.type(b"echo $((6 * 7)); tty\r")
    shell.expect(b"\n42\r\n/dev/ttyS0\r\n")
    shell.type(b"exit\r")
    assert shell.end() == 0


def test_exit_powers_the_guest_off(shell: Terminal) -> None:
    shell.expect(b"# ")
    shell.type(b"exit\r")
    assert shell.end() == 0
    assert b"powered off" in shell.seen


def test_sigterm_restores_the_terminal_and_leaves_nothing(shell: Terminal) -> None:
    shell.expect(b"# ")
    below = children(shell.process.pid)
    assert below
    shell.process.send_signal(signal.SIGTERM)
    assert shell.end() != 0
    assert all_ended(below, 0)


def test_kill_9_leaves_nothing() -> None:
    process = subprocess.Popen(
        [*RUN, "--", "sh", "-c", "echo up; sleep 100"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    below = children(process.pid)
    process.kill()
    process.wait()
    assert all_ended(below)


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RUN, *arguments], input=stdin, capture_output=True, timeout=SECONDS, check=False)


def test_pipes_result_and_status(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run("--result", str(result), "--", "sh", "-c", "tr a-z A-Z; exit 7", stdin=b"text\n")
    assert (done.returncode, done.stdout) == (7, b"TEXT\n")
    assert '"outcome": "exit"' in result.read_text()
    assert not [line for line in done.stderr.decode().splitlines() if not line.startswith("unikvm: ")]


def test_a_disk_that_the_host_vm_may_not_write(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    done = run("-d", str(disk), "--", "true")
    assert done.returncode == CANNOT_RUN
    assert "--share" in done.stderr.decode()
    done = run("-d", str(disk), "--share", str(tmp_path), "--", "sh", "-c", "echo kept > /dev/vda")
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes().startswith(b"kept\n")


@pytest.mark.network
def test_another_guest_and_host_kernel() -> None:
    package = "linux-image-6.12-cloud-amd64"
    done = run("-k", package, "--host-kernel", package, "--no-kernel-half", "--", "uname", "-r")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"6.12.")
