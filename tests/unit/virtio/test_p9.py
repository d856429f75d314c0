# SPDX-License-Identifier: GPL-2.0-only
"""virtio-9p: requests to the real server and back, a driver that breaks the rules, a server that does or ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, socketpair
from socket import socket as Socket
from struct import pack, unpack_from

import pytest

from unikvm.errors import UnikvmError
from unikvm.p9 import messages as m
from unikvm.p9.server import Server, serve
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_NEEDS_RESET
from unikvm.vhost import ninep
from unikvm.virtio.p9 import P9
from unit.virtio.driver import Bench

ROOM = 8192
NO_FID = 0xFFFF_FFFF
VERSION = pack("<I", ROOM) + m.string(m.VERSION)


class Peer:
    """A back end whose other end is the test's."""

    name = "the peer"
    again = False

    def __init__(self) -> None:
        self.ours, self._theirs = socketpair(AF_UNIX, SOCK_STREAM)
        self.ours.settimeout(5)
        self.stopped = False

    def open(self) -> Socket:
        return self._theirs

    def why(self) -> str:
        return ""

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


class Guest(Bench):
    def __init__(self, device: P9) -> None:
        super().__init__(device)
        self.start()
        self.answers: dict[int, int] = {}  # heads to the addresses of their buffers

    def ask(self, kind: int, tag: int, body: bytes, *, room: int = ROOM) -> int:
        """Put a request into the ring, in two parts as Linux does for long ones; its head."""
        text = m.message(kind, tag, body)
        answer, _ = self.buffer(room)
        head = self.rings[0].add([self.buffer(text[:9]), self.buffer(text[9:])], [(answer, room)], indirect=True)
        self.answers[head] = answer
        self.kick(0)
        return head

    def answered(self, count: int) -> list[bytes]:
        """The next `count` answers, in their order."""
        found: list[bytes] = []
        end = time.monotonic() + 5
        while len(found) < count:
            assert time.monotonic() < end, "no answer"
            self.settle()
            for head, length in self.rings[0].take_used():
                found.append(bytes(self.memory.view(self.answers[head], length)))
        return found


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def news() -> list[str]:
    return []


@pytest.fixture
def guest(peer: Peer, news: list[str]) -> Iterator[Guest]:
    it = Guest(P9("root", peer, say=news.append))
    yield it
    it.close()


def test_the_tag(guest: Guest) -> None:
    assert guest.device.config == b"\x04\0root"
    with pytest.raises(UnikvmError, match="cannot be kept"):
        guest.device.save()


def test_a_file_through_the_real_server(guest: Guest, peer: Peer, tmp_path: Path) -> None:
    """More in one write than the socket takes at once."""
    threading.Thread(target=serve, args=(peer.ours.dup(), Server(str(tmp_path))), daemon=True).start()
    peer.open().setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
    data = os.urandom(ROOM - m.ROOM)
    guest.ask(m.START, 0xFFFF, VERSION)
    guest.ask(m.ATTACH, 1, pack("<II", 0, NO_FID) + m.string(b"") * 2 + pack("<I", os.getuid()))
    guest.ask(m.LCREATE, 2, pack("<I", 0) + m.string(b"new") + pack("<III", os.O_RDWR, 0o600, os.getgid()))
    guest.ask(m.WRITE, 3, pack("<IQI", 0, 0, len(data)) + data)
    guest.ask(m.READ, 4, pack("<IQI", 0, 0, ROOM))
    answers = guest.answered(5)
    assert [m.HEADER.unpack_from(answer)[1:] for answer in answers] == [
        (101, 0xFFFF), (105, 1), (15, 2), (119, 3), (117, 4)
    ]  # fmt: skip
    assert answers[4][11:] == data
    assert (tmp_path / "new").read_bytes() == data


def test_a_reset_between_request_and_answer(guest: Guest, peer: Peer) -> None:
    """The answer was for a driver that is no more."""
    guest.ask(m.START, 7, VERSION)
    peer.ours.recv(100)
    guest.device.write_status(0)
    guest.start()
    guest.ask(m.START, 8, VERSION)
    peer.ours.sendall(m.message(101, 7, b"old") + m.message(101, 8, b"new"))
    assert guest.answered(1) == [m.message(101, 8, b"new")]


@pytest.mark.parametrize("text", [b"", b"\x07\0\0", b"\x08\0\0\0\x64\0\0", pack("<IBH", m.MAX_MESSAGE + 1, 100, 0)])
def test_requests_that_are_none(guest: Guest, news: list[str], text: bytes) -> None:
    guest.rings[0].add([guest.buffer(text)], [(0x1000, 100)])
    guest.kick(0)
    assert guest.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert not news


def test_a_buffer_too_small_for_the_answer(guest: Guest, peer: Peer) -> None:
    guest.ask(m.START, 1, VERSION, room=8)
    guest.ask(m.START, 2, VERSION)
    peer.ours.sendall(m.message(101, 1, b"longer") + m.message(101, 2, b"other"))
    guest.settle()
    assert guest.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    guest.device.write_status(0)
    guest.start()
    guest.ask(m.START, 3, VERSION)
    peer.ours.sendall(m.message(101, 3, b"new"))
    assert guest.answered(1) == [m.message(101, 3, b"new")]


@pytest.mark.parametrize(
    "said", [b"", b"\1\0\0\0\0\0\0", m.message(101, 9, b""), pack("<IBH", m.MAX_MESSAGE + 1, 101, 1)]
)
def test_a_server_that_ends_or_talks_nonsense(guest: Guest, peer: Peer, news: list[str], said: bytes) -> None:
    """What is under way and what comes later is answered with an error."""
    guest.ask(m.START, 1, VERSION)
    if said:
        peer.ours.sendall(said)
    else:
        peer.ours.close()
    (answer,) = guest.answered(1)
    assert answer == m.refusal(1, 107)
    assert peer.stopped
    assert len(news) == 1
    guest.ask(m.START, 2, VERSION)
    assert guest.answered(1) == [m.refusal(2, 107)]


@pytest.mark.parametrize("readonly", [True, False])
def test_the_server_as_a_process(tmp_path: Path, readonly: bool) -> None:
    """In its own mount name space nothing can be written, whatever it is asked."""
    program = ninep.serve(str(tmp_path), readonly=readonly)
    sock = program.open()
    sock.settimeout(10)
    try:
        sock.sendall(m.message(m.START, 1, VERSION))
        sock.sendall(m.message(m.ATTACH, 2, pack("<II", 0, NO_FID) + m.string(b"") * 2 + pack("<I", 0)))
        sock.sendall(m.message(m.MKDIR, 3, pack("<I", 0) + m.string(b"made") + pack("<II", 0o755, 0)))
        got = b""
        while len(got) < 21 + 20 + 11:
            more = sock.recv(1000)
            assert more, program.why()
            got += more
        _, kind, tag = m.HEADER.unpack_from(got, 21 + 20)
        assert (kind, tag) == (7 if readonly else 73, 3)
        assert not readonly or unpack_from("<I", got, 21 + 20 + 7)[0] == 30
    finally:
        sock.close()
        program.close()
    assert (tmp_path / "made").exists() != readonly
