# SPDX-License-Identifier: GPL-2.0-only
"""What a back end says by itself: answered, refused, or the end of it; and the configuration that is read again."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.vhost import channel
from unikvm.vhost import messages as m
from unikvm.vhost.channel import BackendError, Requests
from unikvm.vhost.frontend import FrontEnd
from unit.vhost.peer import PROTOCOL, Peer

LISTENING = PROTOCOL | 1 << m.PROTOCOL_F_CONFIG | 1 << m.PROTOCOL_F_BACKEND_REQ
CONFIG = b"0123456789"
CHANGE = m.BACKEND_CONFIG_CHANGE_MSG
SECONDS = 10.0


def message(request: int = CHANGE, payload: bytes = b"", *, flags: int = m.VERSION, size: int | None = None) -> bytes:
    return m.HEADER.pack(request, flags, len(payload) if size is None else size) + payload


def send_fds(requests: Requests, data: bytes, count: int) -> int:
    """Send `data` with so many descriptors of a pipe; its other end has ended when all of them are closed."""
    end, sent = os.pipe2(os.O_NONBLOCK)
    rights = array.array("i", [sent] * count)
    requests.theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(sent)
    return end


def all_closed(end: int) -> bool:
    try:
        return os.read(end, 1) == b""
    except BlockingIOError:
        return False
    finally:
        os.close(end)


@pytest.fixture
def requests() -> Iterator[Requests]:
    made = Requests("the peer")
    made.theirs.settimeout(SECONDS)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unikvm.vhost.frontend.FIRST_SECONDS", 1.0)


def meet(peer: Peer, seconds: float = SECONDS) -> FrontEnd:
    peer.config = CONFIG
    front = FrontEnd(peer.open(), peer.name)
    front._channel.seconds = seconds
    front.negotiate(1, listens=True)
    return front


@pytest.mark.parametrize(
    ("protocol", "listens", "made"),
    [
        (LISTENING, True, True),
        (LISTENING, False, False),
        (LISTENING & ~(1 << m.PROTOCOL_F_CONFIG), True, False),
        (LISTENING & ~(1 << m.PROTOCOL_F_BACKEND_REQ), True, False),
    ],
)
def test_the_connection_is_made_for_those_who_need_one(protocol: int, listens: bool, made: bool) -> None:
    peer = Peer(protocol=protocol)
    front = FrontEnd(peer.open(), peer.name)
    front.negotiate(1, listens=listens)
    assert ("SET_BACKEND_REQ_FD" in peer.names()) == made == (front.requests is not None)
    agreed = dict(peer.log)[m.SET_PROTOCOL_FEATURES]
    assert m.U64.unpack(agreed)[0] >> m.PROTOCOL_F_BACKEND_REQ & 1 == made
    if made:
        with peer.own() as own:
            own.sendall(message())
            assert front.requests is not None
            assert front.requests.serve()
    front.close()
    peer.close()


def test_changes_are_answered_where_that_is_asked_for(requests: Requests) -> None:
    requests.theirs.sendall(message() + message(flags=m.VERSION | m.NEED_REPLY))
    assert requests.serve()
    assert not requests.serve()
    assert requests.theirs.recv(100) == message(CHANGE, bytes(8), flags=m.VERSION | m.REPLY)


@pytest.mark.parametrize("request_", [0, 1, 3, 4, 5, 6, 99, 0xFFFF_FFFF])
def test_everything_else_is_refused_and_its_descriptors_are_closed(requests: Requests, request_: int) -> None:
    data = message(request_, bytes(100), flags=m.VERSION | m.NEED_REPLY)
    ends = [send_fds(requests, data, 3), send_fds(requests, message(request_, bytes(100)), 1)]
    assert not requests.serve()
    assert requests.theirs.recv(100) == message(request_, m.U64.pack(1), flags=m.VERSION | m.REPLY)
    assert all(map(all_closed, ends))
    requests.theirs.sendall(message(CHANGE, b"more", flags=m.VERSION | m.NEED_REPLY) + message())
    assert requests.serve()  # the second one
    assert requests.theirs.recv(100) == message(CHANGE, m.U64.pack(1), flags=m.VERSION | m.REPLY)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (message(flags=0), "request 2 with flags 0x0"),
        (message(flags=2), "request 2 with flags 0x2"),
        (message(flags=m.VERSION | m.REPLY), "request 2 with flags 0x5"),
        (message(size=m.MAX_BACKEND_PAYLOAD + 1), "request 2 with 1025 bytes"),
        (message(7, size=0xFFFF_FFFF), "request 7 with 4294967295 bytes"),
    ],
)
def test_what_makes_no_sense_is_an_error(requests: Requests, data: bytes, text: str) -> None:
    requests.theirs.sendall(data)
    with pytest.raises(BackendError, match=text):
        requests.serve()


def test_more_descriptors_than_there_is_room_for(requests: Requests) -> None:
    end = send_fds(requests, message(), channel.MAX_FDS + 1)
    with pytest.raises(BackendError, match="more descriptors than"):
        requests.serve()
    requests.close()
    assert all_closed(end)


def test_bytes_that_trickle_are_not_waited_for(requests: Requests) -> None:
    before = time.monotonic()
    data = message(3, b"12345678", flags=m.VERSION | m.NEED_REPLY) + message()
    for byte in data[:-1]:
        requests.theirs.sendall(bytes([byte]))
        assert not requests.serve()
    requests.theirs.sendall(data[-1:])
    assert requests.serve()
    assert time.monotonic() - before < SECONDS


def test_who_does_not_stop_leaves_others_a_turn(requests: Requests) -> None:
    requests.theirs.sendall(message() * (channel.AT_ONCE + 1))
    assert requests.serve()
    assert requests.serve()
    assert not requests.serve()


def test_who_does_not_take_answers_is_not_waited_for(requests: Requests) -> None:
    question = message(flags=m.VERSION | m.NEED_REPLY)
    before = time.monotonic()

    def ask() -> None:
        while True:
            requests.theirs.sendall(question)
            requests.serve()

    with pytest.raises(BackendError, match="does not take the answers"):
        ask()
    assert time.monotonic() - before < SECONDS


@pytest.mark.parametrize("ours", [False, True])
def test_a_closed_connection_is_the_end_of_requests_alone(requests: Requests, ours: bool) -> None:
    requests.theirs.sendall(message())
    if ours:
        requests.close()
    else:
        requests.theirs.close()
    assert requests.serve() != ours  # what was said before counts
    requests.serve()
    assert requests.ended


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_garbage_is_answered_or_an_error(parts: list[bytes]) -> None:
    requests = Requests("the peer")
    try:
        for part in parts:
            requests.theirs.sendall(part)
            requests.serve()
    except BackendError:
        pass
    requests.close()


# The configuration, read again


def test_the_answer_is_taken_when_it_is_there() -> None:
    peer = Peer(protocol=LISTENING)
    front = meet(peer)
    assert front.get_config(10) == CONFIG
    front.look()  # nothing is asked for, and nothing there
    peer.config = b"9876543210"
    front.ask_config()
    until(front, b"9876543210")
    assert not front.due
    front.close()
    peer.close()


def until(front: FrontEnd, config: bytes) -> None:
    end = time.monotonic() + SECONDS
    while front.config != config:
        assert time.monotonic() < end
        front.look()


def test_a_request_takes_the_answer_that_comes_before_its_own() -> None:
    peer = Peer(protocol=LISTENING)
    front = meet(peer)
    front.get_config(10)
    peer.config = b"9876543210"
    front.ask_config()
    front.set_features(0)
    assert front.config == b"9876543210"
    assert peer.names()[-2:] == ["GET_CONFIG", "SET_FEATURES"]
    front.close()
    peer.close()


def test_a_change_while_it_is_read_has_it_read_once_more() -> None:
    peer = Peer(protocol=LISTENING)
    front = meet(peer)
    front.get_config(10)
    answers = [b"second....", b"third....."]
    peer.answers[m.GET_CONFIG] = lambda _peer, payload, _fds: payload[:12] + answers.pop(0)
    for _ in range(3):
        front.ask_config()
    until(front, b"third.....")
    assert peer.names().count("GET_CONFIG") == 3
    assert not front.due
    front.close()
    peer.close()


@pytest.mark.parametrize("answer", [b"", message(m.GET_CONFIG, b"", flags=m.VERSION | m.REPLY, size=22)[:-1]])
def test_an_answer_that_is_late(answer: bytes) -> None:
    """Or never whole. Looking for it does not wait."""
    peer = Peer(protocol=LISTENING)
    front = meet(peer, seconds=0.3)
    front.get_config(10)
    peer.raw[m.GET_CONFIG] = answer
    front.ask_config()
    before = time.monotonic()
    front.look()
    assert time.monotonic() - before < 0.2
    time.sleep(0.3)
    with pytest.raises(BackendError, match="does not give its configuration in time"):
        front.look()
    front.close()
    peer.close()


def test_another_part_than_was_asked_for() -> None:
    peer = Peer(protocol=LISTENING)
    front = meet(peer)
    front.get_config(10)
    peer.answers[m.GET_CONFIG] = lambda _peer, _payload, _fds: m.CONFIG_HEADER.pack(1, 10, 0) + bytes(10)
    front.ask_config()
    with pytest.raises(BackendError, match="another part"):
        until(front, bytes(10))
    front.close()
    peer.close()
