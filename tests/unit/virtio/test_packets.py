# SPDX-License-Identifier: GPL-2.0-only
"""Frames as messages: their bounds, a full socket, and the end of the other side."""

from __future__ import annotations

from collections.abc import Iterator
from socket import AF_UNIX, SO_SNDBUF, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from socket import socket as PythonSocket

import pytest

from unikvm.vhost.channel import BackendError
from unikvm.virtio.frames import HEADER, MAX_FRAME
from unikvm.virtio.packets import PacketLine


@pytest.fixture
def ends() -> Iterator[tuple[PacketLine, PythonSocket]]:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    theirs.settimeout(5)
    line = PacketLine(ours)
    yield line, theirs
    line.close()
    theirs.close()


def test_frames_keep_their_order(ends: tuple[PacketLine, PythonSocket]) -> None:
    line, peer = ends
    assert line.frame() is None
    assert not line.receive()
    frames = [bytes([number]) * (100 + number) for number in range(9)] + [bytes(MAX_FRAME)]
    for frame in frames:
        peer.send(frame)
    found: list[bytes] = []
    while line.receive():
        while (view := line.frame()) is not None:
            found.append(bytes(view))
            line.take(view)
    assert found == frames


def test_parts_become_one_message(ends: tuple[PacketLine, PythonSocket]) -> None:
    line, peer = ends
    many = [memoryview(b"x")] * 2000
    assert line.send([((memoryview(b"head"), memoryview(b"tail" * 4)), 20), (many, len(many))]) == 2
    assert peer.recv(4096) == b"head" + b"tail" * 4
    assert peer.recv(4096) == b"x" * 2000


def test_a_full_socket(ends: tuple[PacketLine, PythonSocket]) -> None:
    """What it takes it takes whole."""
    line, peer = ends
    frame = (memoryview(bytes(3000)),), 3000
    sent = line.send([frame] * 1000)
    assert 0 < sent < 1000
    assert {len(peer.recv(4096)) for _ in range(sent)} == {3000}
    assert line.send([frame]) == 1


@pytest.mark.parametrize("size", [1, HEADER - 1, MAX_FRAME + 1, MAX_FRAME + 1000])
def test_what_is_no_frame(ends: tuple[PacketLine, PythonSocket], size: int) -> None:
    line, peer = ends
    peer.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
    peer.send(bytes(size))
    with pytest.raises(BackendError, match="a frame of"):
        line.receive()


def test_the_end(ends: tuple[PacketLine, PythonSocket]) -> None:
    line, peer = ends
    peer.close()
    with pytest.raises(BackendError, match="it closed the connection"):
        line.receive()
    with pytest.raises(BackendError, match="Broken pipe"):
        line.send([((memoryview(bytes(99)),), 99)])
