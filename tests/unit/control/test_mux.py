# SPDX-License-Identifier: GPL-2.0-only
"""Many streams over one, both ends real."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from unikvm.control.mux import MAX_CHANNELS, Mux
from unikvm.sys.eventloop import EventLoop

SIZE = 2_000_003


class Two:
    """Two ends over a socket pair; `accepted` are the streams that came out at the far end."""

    def __init__(self, loop: EventLoop) -> None:
        near, far = socket.socketpair()
        self.loop = loop
        self.accepted: list[socket.socket] = []
        self.came = threading.Semaphore(0)
        self.lost = threading.Event()
        self.near = Mux(loop, near.detach())
        self.far = Mux(loop, far.detach(), self._accept, self.lost.set)

    def _accept(self, fd: int) -> None:
        self.accepted.append(socket.socket(fileno=fd))
        self.came.release()

    def open(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self.loop.call_soon(lambda: self.near.open(theirs.detach()))
        assert self.came.acquire(timeout=5)
        other = self.accepted[-1]
        for sock in (ours, other):
            sock.settimeout(10)
        return ours, other


@pytest.fixture
def two(loop: EventLoop) -> Two:
    return Two(loop)


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


def send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_several_at_once_both_ways(two: Two) -> None:
    pairs = [two.open() for _ in range(4)]
    texts = [os.urandom(SIZE) for _ in pairs]
    threads = [
        threading.Thread(target=send, args=(ours if index % 2 else theirs, text))
        for index, ((ours, theirs), text) in enumerate(zip(pairs, texts, strict=True))
    ]
    for thread in threads:
        thread.start()
    for index, ((ours, theirs), text) in enumerate(zip(pairs, texts, strict=True)):
        assert read_all(theirs if index % 2 else ours) == text
    for thread in threads:
        thread.join()


def test_a_slow_stream_holds_up_no_other(two: Two) -> None:
    stuck, _ = two.open()
    stuck.settimeout(0.3)
    with pytest.raises(TimeoutError):
        stuck.sendall(bytes(64 << 20))
    ours, theirs = two.open()
    threading.Thread(target=send, args=(ours, b"x" * SIZE)).start()
    assert len(read_all(theirs)) == SIZE


def test_a_lost_end_ends_the_other(two: Two) -> None:
    ours, theirs = two.open()
    theirs.close()
    ours.settimeout(5)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ours.sendall(bytes(64 << 20))


def test_too_many_are_closed(two: Two) -> None:
    kept = [two.open() for _ in range(MAX_CHANNELS)]
    ours, theirs = socket.socketpair()
    two.loop.call_soon(lambda: two.near.open(theirs.detach()))
    ours.settimeout(5)
    assert ours.recv(1) == b""
    kept[0][0].close()
    kept[0][1].close()
    time.sleep(0.2)
    ours, theirs = two.open()
    send(ours, b"again")
    assert read_all(theirs) == b"again"


def test_close_ends_all(two: Two) -> None:
    ours, theirs = two.open()
    two.loop.call_soon(two.near.close)
    assert two.lost.wait(5)
    assert ours.recv(1) == b""
    assert theirs.recv(1) == b""


@pytest.mark.parametrize("junk", [b"\xff" * 8, b"\0" * 8, b"\x02\0\0\0\xff\xff\xff\x7f"])
def test_a_broken_protocol_ends_the_line(loop: EventLoop, junk: bytes) -> None:
    near, far = socket.socketpair()
    lost = threading.Event()
    Mux(loop, far.detach(), lambda _fd: None, lost.set)
    near.sendall(junk)
    assert lost.wait(5)


def test_frames_for_unknown_channels_are_dropped(loop: EventLoop) -> None:
    near, far = socket.socketpair()
    near.settimeout(5)
    Mux(loop, far.detach(), None)
    near.sendall(b"\x02\0\x07\0\x03\0\0\0abc" + b"\x05\0\x07\0\0\0\0\x10" + b"\x01\0\x09\0\0\0\0\0")
    assert near.recv(8) == b"\x04\0\x09\0\0\0\0\0"  # nobody takes what is opened here
