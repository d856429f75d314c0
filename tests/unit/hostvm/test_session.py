# SPDX-License-Identifier: GPL-2.0-only
"""The conversation with init: a real init on socket pairs, a watchdog that only records."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time

import pytest

from unikvm import wire
from unikvm.errors import HANG, CannotRun, UnikvmError
from unikvm.hostvm import session as session_module
from unikvm.hostvm.session import Session
from unikvm.hostvm.watchdog import HostError

from .conftest import Serve


class FakeWatchdog:
    """Raises where the real one would, without a QEMU."""

    def __init__(self) -> None:
        self.silent = 0.0
        self.limit = 20.0  # seconds: a crowded machine is no hang

    def heard(self) -> None:
        self.silent = 0.0

    def waited(self, seconds: float) -> None:
        self.silent += seconds
        if self.silent > self.limit:
            self.hung("silence")

    def hung(self, what: str) -> None:
        raise HostError("host-hang", what, "")

    def closed(self, what: str) -> None:
        raise HostError("host-died", what, "")

    def check(self) -> None:
        pass


class Front:
    def __init__(self, serve: Serve) -> None:
        ports, self.process = serve()
        self.watchdog = FakeWatchdog()
        self.session = Session(ports, self.watchdog, [], lambda: None)  # type: ignore[arg-type]
        assert self.session.answer(20, "ready") == ["ready", wire.PROTOCOL]
        self.out = bytearray()
        self.err = bytearray()

    def run(self, script: str, stdin: int | bytes | None = None, **how: object) -> tuple[wire.Command, bool]:
        tty = str(how.pop("tty", "none"))
        request = wire.exec_line(["/bin/sh", "-c", script], tty=tty)
        return self.session.run(request, stdin, self.out.extend, self.err.extend, **how)  # type: ignore[arg-type]


@pytest.fixture
def front(serve_init: Serve) -> Front:
    return Front(serve_init)


def test_bytes_go_both_ways(front: Front) -> None:
    data = os.urandom(2_000_000)
    command, expired = front.run("cat; echo oops >&2; exit 3", data)
    assert (command.status, expired) == (3, False)
    assert front.out == data
    assert front.err == b"oops\n"


def test_a_descriptor_as_stdin(front: Front) -> None:
    read, write = os.pipe()

    def feed() -> None:
        for number in range(50):
            os.write(write, b"%d\n" % number)
            time.sleep(0.001)
        os.close(write)

    feeder = threading.Thread(target=feed)
    feeder.start()
    command, _ = front.run("wc -l", read)
    feeder.join()
    os.close(read)
    assert command.status == 0
    assert front.out.strip() == b"50"


def test_a_regular_file_as_stdin(front: Front) -> None:
    with open(__file__, "rb") as file:
        front.run("cat", file.fileno())
    with open(__file__, "rb") as file:
        assert front.out == file.read()


def test_stdin_that_never_ends_does_not_keep_a_command(front: Front) -> None:
    read, write = os.pipe()
    try:
        assert front.run("exit 4", read)[0].status == 4
        assert front.run("echo next")[0].status == 0
    finally:
        os.close(read)
        os.close(write)
    assert front.out == b"next\n"


def test_many_commands(front: Front) -> None:
    for number in range(30):
        assert front.run(f"exit {number}", b"unread" * number)[0].status == number


def test_a_refused_command_leaves_no_input_behind(front: Front) -> None:
    request = wire.exec_line(["/no/such"])
    command, _ = front.session.run(request, b"x" * 100_000, front.out.extend, front.err.extend)
    assert "No such file" in command.error
    front.run("cat", b"mine")
    assert front.out == b"mine"


def test_no_input_leaves_before_init_took_the_command() -> None:
    pairs = {port: socket.socketpair() for port in wire.PORTS}
    session = Session({port: pair[0] for port, pair in pairs.items()}, FakeWatchdog(), [], lambda: None)  # type: ignore[arg-type]
    pairs[wire.PORT_CTL][1].sendall(wire.encode("error", "no"))
    command, _ = session.run(wire.exec_line(["x"]), b"input", bytearray().extend, bytearray().extend)
    assert command.error == "no"
    with pytest.raises(BlockingIOError):
        pairs[wire.PORT_STDIN][1].recv(1, socket.MSG_DONTWAIT)
    session.close()
    for ours, theirs in pairs.values():
        ours.close()
        theirs.close()


def test_what_is_typed_is_filtered(front: Front) -> None:
    read, write = os.pipe()
    os.write(write, b"hello\n")
    front.run("read line; echo got $line", read, typed=lambda data: data.replace(b"hello", b"bye"), tty="pty")
    os.close(read)
    os.close(write)
    assert b"got bye" in front.out


def test_an_exception_of_the_filter_ends_the_relay(front: Front) -> None:
    read, write = os.pipe()
    os.write(write, b"\x01x")

    def leave(_data: bytes) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        front.run("sleep 60", read, typed=leave)
    os.close(read)
    os.close(write)


def test_time_is_over(front: Front) -> None:
    command, expired = front.run("sleep 60", timeout=0.3)
    assert (command.signal, expired) == (signal.SIGTERM, True)


def test_a_command_that_ignores_sigterm(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_GRACE", 0.3)
    command, expired = front.run("trap '' TERM; while :; do sleep 1; done", timeout=0.3)
    assert (command.signal, expired) == (signal.SIGKILL, True)


def test_resizes_reach_the_command(front: Front) -> None:
    timer = threading.Timer(0.5, front.session.resize, (99, 11))
    timer.start()
    front.run("sleep 1.5; stty size", tty="pty")
    timer.join()
    assert front.out == b"11 99\r\n"


def test_errors_of_requests(front: Front) -> None:
    front.session.send("insmod", "/no/such.ko")
    with pytest.raises(UnikvmError, match=r"module /no/such\.ko: No such file"):
        front.session.answer(20, "insmod")


def test_silence_is_a_hang(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT", 0.1)
    front.watchdog.limit = 2.0
    front.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(HostError) as caught:
            front.run("true")
    finally:
        front.process.send_signal(signal.SIGCONT)
    assert (caught.value.kind, caught.value.outcome, caught.value.output_seen) == ("host-hang", HANG, False)


def test_a_silent_command_is_no_hang(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT", 0.1)
    front.watchdog.limit = 0.5
    assert front.run("sleep 1.5")[0].status == 0


def test_death_is_told_with_whether_output_was_seen(front: Front) -> None:
    with pytest.raises(HostError) as caught:
        front.run("echo first; sleep 0.3; kill -9 $PPID")
    assert caught.value.kind == "host-died"
    assert caught.value.output_seen
    assert front.out == b"first\n"


def test_a_command_whose_output_nobody_reads(front: Front) -> None:
    def gone(_data: bytes) -> None:
        raise BrokenPipeError

    request = wire.exec_line(["yes"])
    command, _ = front.session.run(request, None, gone, front.err.extend)
    assert command.signal == signal.SIGPIPE
    assert front.run("echo next")[0].status == 0
    assert front.out == b"next\n"


def test_output_that_there_is_no_room_for(front: Front) -> None:
    def full(_data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CannotRun, match="stdout cannot be written: No space left"):
        front.session.run(wire.exec_line(["echo", "text"]), None, full, front.err.extend)
