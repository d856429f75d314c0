# SPDX-License-Identifier: GPL-2.0-only
"""The conversation with a back end: what is said, and what is made of answers that are wrong in any way."""

from __future__ import annotations

import gc
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.memory import GuestMemory
from unikvm.vhost import channel
from unikvm.vhost import messages as m
from unikvm.vhost.channel import BackendError
from unikvm.vhost.frontend import FrontEnd, Ring
from unit.vhost.peer import PROTOCOL, Peer
from unit.virtio.driver import make_memory

EVERYTHING = PROTOCOL | 1 << m.PROTOCOL_F_CONFIG | 1 << m.PROTOCOL_F_INFLIGHT_SHMFD


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = make_memory(shared=True)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("unikvm.vhost.frontend.FIRST_SECONDS", 0.5)


def meet(peer: Peer) -> FrontEnd:
    front = FrontEnd(peer.open(), peer.name)
    front._channel.seconds = 0.5
    return front


def answer(request: int, payload: bytes, *, flags: int = m.VERSION | m.REPLY, size: int | None = None) -> bytes:
    return m.HEADER.pack(request, flags, len(payload) if size is None else size) + payload


def test_negotiation_with_and_without_protocol_features() -> None:
    peer = Peer(protocol=EVERYTHING | 1 << 40)
    front = meet(peer)
    front.negotiate(2)
    assert peer.names()[:4] == ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "SET_OWNER"]
    assert peer.log[2][1] == m.U64.pack(EVERYTHING)  # what nobody here knows is not agreed on
    front.set_features(5)
    assert peer.log[-1] == (m.SET_FEATURES, m.U64.pack(5 | 1 << m.F_PROTOCOL_FEATURES))
    front.close()
    peer.close()
    old = Peer(features=1 << 32)
    front = meet(old)
    front.negotiate(2)
    front.set_features(1 << 32)
    assert front.stop_ring(0) == 0  # which is answered, and so were those before it
    assert old.names() == ["GET_FEATURES", "SET_OWNER", "SET_FEATURES", "GET_VRING_BASE"]
    assert old.log[2][1] == m.U64.pack(1 << 32)
    front.close()


def test_too_few_queues() -> None:
    peer = Peer()
    peer.queues = 1
    front = meet(peer)
    with pytest.raises(BackendError, match="has 1 queues, and 2 are needed"):
        front.negotiate(2)
    front.close()


def test_memory_arrives_at_its_addresses(memory: GuestMemory) -> None:
    peer = Peer()
    front = meet(peer)
    front.negotiate(1)
    front.set_memory(memory)
    memory.write(0x1234, b"low")
    memory.write(1 << 32, b"high")
    assert peer.memory(0x1234, 3) == b"low"
    assert peer.memory(1 << 32, 4) == b"high"
    front.close()
    private = make_memory()
    with pytest.raises(BackendError, match="cannot be shared"):
        front.set_memory(private)
    private.close()
    peer.close()


def test_a_ring_is_started_and_stopped() -> None:
    peer = Peer()
    front = meet(peer)
    front.negotiate(1)
    kick, call = os.eventfd(0), os.eventfd(0)
    front.start_ring(Ring(3, 64, 7, 0x1000, 0x2000, 0x3000), kick=kick, call=call)
    sent = dict(peer.log)
    assert sent[m.SET_VRING_NUM] == m.VRING_STATE.pack(3, 64)
    assert sent[m.SET_VRING_ADDR] == m.VRING_ADDR.pack(3, 0, 0x1000, 0x3000, 0x2000, 0)
    assert sent[m.SET_VRING_ENABLE] == m.VRING_STATE.pack(3, 1)
    os.eventfd_write(kick, 5)
    assert os.eventfd_read(peer.fds[m.SET_VRING_KICK, 3]) == 5
    assert front.stop_ring(3) == 7
    peer.answers[m.GET_VRING_BASE] = lambda _peer, _payload, _fds: m.VRING_STATE.pack(2, 0)
    with pytest.raises(BackendError, match="stopped ring 2 instead of 3"):
        front.stop_ring(3)
    front.close()
    peer.close()
    os.close(kick)
    os.close(call)


def test_configuration() -> None:
    peer = Peer(protocol=EVERYTHING)
    peer.config = b"0123456789"
    front = meet(peer)
    front.negotiate(1)
    assert front.get_config(10) == b"0123456789"
    with pytest.raises(BackendError, match="22 bytes instead of 23"):
        front.get_config(11)
    peer.answers[m.GET_CONFIG] = lambda _peer, _payload, _fds: m.CONFIG_HEADER.pack(1, 10, 0) + bytes(10)
    front = meet(peer)
    front.negotiate(1)
    with pytest.raises(BackendError, match="another part"):
        front.get_config(10)
    front.close()


def test_a_record_of_requests_under_way_goes_round() -> None:
    peer = Peer(protocol=EVERYTHING)
    front = meet(peer)
    front.negotiate(1)
    record = front.get_inflight(2, 128)
    assert record is not None
    assert (record.queues, record.entries, record.size) == (2, 128, 4096)
    os.pwrite(peer.inflight, b"under way", 0)
    front.set_inflight(record)
    assert os.pread(peer.fds[m.SET_INFLIGHT_FD, 0], 9, 0) == b"under way"
    os.close(record.fd)
    front.close()
    plain = meet(Peer())
    plain.negotiate(1)
    assert plain.get_inflight(2, 128) is None
    plain.close()


def test_a_refusal_is_an_error_that_names_the_request() -> None:
    peer = Peer()
    peer.answers[m.SET_FEATURES] = lambda _peer, _payload, _fds: m.U64.pack(1)
    front = meet(peer)
    front.negotiate(1)
    with pytest.raises(BackendError, match="the peer refuses SET_FEATURES"):
        front.set_features(0)
    front.close()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (answer(m.GET_FEATURES, bytes(4)), "4 bytes instead of 8"),
        (answer(m.GET_FEATURES, b"", size=0xFFFF_FFFF), "4294967295 bytes instead of 8"),
        (answer(m.SET_OWNER, bytes(8)), "answers GET_FEATURES with SET_OWNER"),
        (answer(999, bytes(8)), "with request 999"),
        (answer(m.GET_FEATURES, bytes(8), flags=m.VERSION), "flags 0x1"),
        (answer(m.GET_FEATURES, bytes(8), flags=m.REPLY | 2), "flags 0x6"),
        (b"\x01\0", "does not answer|no complete answer"),
        (b"", "does not answer|no complete answer"),
    ],
)
def test_answers_that_are_none(raw: bytes, text: str) -> None:
    peer = Peer()
    peer.raw[m.GET_FEATURES] = raw
    front = meet(peer)
    with pytest.raises(BackendError, match=text):
        front.negotiate(1)
    front.close()


def test_answers_that_trickle_do_not_hold_anybody_up() -> None:
    """A byte now and then is not a sign of life."""
    peer = Peer()

    def trickle(it: Peer, _payload: bytes, _fds: list[int]) -> bytes:
        for byte in answer(m.GET_FEATURES, bytes(8)):
            it.say(bytes([byte]))
            time.sleep(0.3)
        return b""

    peer.answers[m.GET_FEATURES] = trickle
    front = meet(peer)
    before = time.monotonic()
    with pytest.raises(BackendError, match="answer"):
        front.negotiate(1)
    assert time.monotonic() - before < 4  # all of it takes 6
    front.close()


def test_descriptors_that_nobody_asked_for_are_not_kept() -> None:
    gc.collect()  # what other tests left is not to be closed in between
    for thread in threading.enumerate():
        if thread.name == "peer":
            thread.join(5)
    peer = Peer()

    def with_descriptors(_peer: Peer, _payload: bytes, fds: list[int]) -> bytes:
        fds += [1, 1, 1]
        return m.U64.pack(0)

    peer.answers[m.GET_FEATURES] = with_descriptors
    front = meet(peer)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match="with 3 descriptors, not 0"):
        front.negotiate(1)
    assert len(os.listdir("/proc/self/fd")) == before
    front.close()


@pytest.mark.parametrize("count", [0, 2])
def test_a_record_without_its_descriptor(count: int) -> None:
    peer = Peer(protocol=EVERYTHING)

    def record(_peer: Peer, _payload: bytes, fds: list[int]) -> bytes:
        fds += [1] * count
        return m.INFLIGHT.pack(4096, 0, 1, 1)

    peer.answers[m.GET_INFLIGHT_FD] = record
    front = meet(peer)
    front.negotiate(1)
    with pytest.raises(BackendError, match=f"with {count} descriptors, not 1"):
        front.get_inflight(1, 1)
    front.close()


def test_the_loops_look_never_waits() -> None:
    peer = Peer()
    front = meet(peer)
    front.negotiate(1)
    before = time.monotonic()
    front.look()
    assert time.monotonic() - before < front._channel.seconds
    peer.say(b"hello")
    with pytest.raises(BackendError, match="nobody asked for"):
        front.look()
    front.close()
    other = Peer()
    front = meet(other)
    other.hang_up()
    with pytest.raises(BackendError, match="the peer: it closed"):
        front.look()
    with pytest.raises(BackendError, match="GET_FEATURES"):
        front.negotiate(1)
    front.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_garbage_is_a_backend_error_and_nothing_else(data: bytes) -> None:
    peer = Peer()
    peer.raw[m.GET_FEATURES] = data
    front = FrontEnd(peer.open(), peer.name)
    front._channel.seconds = 0.02
    try:
        front._get(m.GET_FEATURES)
        assert struct.unpack_from("<I", data)[0] == m.GET_FEATURES
    except BackendError:
        pass
    front.close()
    peer.hang_up()
