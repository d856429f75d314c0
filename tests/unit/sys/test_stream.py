# SPDX-License-Identifier: GPL-2.0-only
"""Streams on an event loop, with real sockets."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from unikvm.sys.eventloop import EventLoop
from unikvm.sys.stream import Stream, splice

SIZE = 3_000_001


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


def send_all(sock: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def spliced(loop: EventLoop) -> tuple[socket.socket, socket.socket]:
    left, one = socket.socketpair()
    right, other = socket.socketpair()
    for sock in (left, right):
        sock.settimeout(10)
    loop.call_soon(lambda: splice(loop, one.detach(), other.detach()))
    return left, right


def test_splice_carries_both_ways_and_ends(loop: EventLoop) -> None:
    left, right = spliced(loop)
    there, back = os.urandom(SIZE), os.urandom(SIZE)
    threads = [send_all(left, there), send_all(right, back)]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(left)))
    reader.start()
    assert read_all(right) == there
    reader.join()
    assert got == [back]
    for thread in threads:
        thread.join()


def test_splice_half_closed(loop: EventLoop) -> None:
    left, right = spliced(loop)
    left.sendall(b"question")
    left.shutdown(socket.SHUT_WR)
    assert read_all(right) == b"question"
    right.sendall(b"answer")
    right.close()
    assert read_all(left) == b"answer"


def test_splice_ends_when_one_end_is_gone(loop: EventLoop) -> None:
    left, right = spliced(loop)
    right.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        left.sendall(bytes(1 << 30))


def test_splice_holds_back(loop: EventLoop) -> None:
    """Nobody reads at the right: what leaves the left is bounded."""
    left, _right = spliced(loop)
    left.settimeout(0.3)
    with pytest.raises(TimeoutError):
        left.sendall(bytes(64 << 20))


def test_room_is_what_is_read(loop: EventLoop) -> None:
    ours, theirs = socket.socketpair()
    got = bytearray()
    seen = threading.Event()
    streams: list[Stream] = []

    def start() -> None:
        stream = Stream(loop, ours.detach(), room=3)
        streams.append(stream)

        def on_data(data: bytes) -> None:
            got.extend(data)
            seen.set()

        stream.on_data = on_data

    loop.call_soon(start)
    theirs.sendall(b"abcdef")
    assert seen.wait(5)
    seen.clear()
    assert not seen.wait(0.1)
    assert got == b"abc"
    loop.call_soon(lambda: streams[0].allow(2))
    assert seen.wait(5)
    assert got == b"abcde"
    loop.call_soon(streams[0].close)
