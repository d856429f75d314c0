# SPDX-License-Identifier: GPL-2.0-only
"""vhost-user devices: what the back end is given, over which eventfds, and what becomes of the device without it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from struct import pack

import pytest

from unikvm.errors import CannotRun
from unikvm.sys.eventfd import EventFd
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
)
from unikvm.vhost import channel
from unikvm.vhost import messages as m
from unikvm.virtio.queue import Chain
from unikvm.virtio.vhostuser import VhostUser
from unit.vhost.peer import FEATURES, PROTOCOL, Peer

from .driver import Bench, bench

QUIET = 20.0


class Toy(VhostUser):
    """Two queues; refuses with 'no'."""

    device_id = 42
    queue_sizes = (64, 64)
    known_features = 1 << 5

    def refuse(self, chain: Chain) -> None:
        chain.write(b"no")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(channel.Channel.__init__, "__kwdefaults__", {"seconds": 1.0})
    monkeypatch.setattr("unikvm.vhost.backend.RESTART_SECONDS", 0.01)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def toy(peer: Peer, said: list[str]) -> Iterator[Bench]:
    with bench(Toy(peer, say=said.append)) as it:
        yield it


def until(bench: Bench, condition: Callable[[], object]) -> None:
    end = time.monotonic() + QUIET
    while not condition():
        assert time.monotonic() < end
        bench.settle(1)
        time.sleep(0.005)


def test_features_are_those_that_both_know(toy: Bench, peer: Peer) -> None:
    device = toy.device
    assert device.offered == 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 28
    toy.start()
    sent = dict(peer.log)
    assert sent[m.SET_FEATURES] == m.U64.pack(device.offered | 1 << m.F_PROTOCOL_FEATURES)
    with bench(Toy(Peer(features=FEATURES | 1 << 5 | 1 << 6))) as other:
        assert other.device.offered >> 5 & 3 == 1


def test_a_back_end_from_before_virtio_1(peer: Peer) -> None:
    peer.features = 0
    with pytest.raises(CannotRun, match=r"the peer cannot be used: .* before virtio 1\.0"), bench(Toy(peer)):
        pass


def test_rings_are_handed_over_by_user_addresses(toy: Bench, peer: Peer) -> None:
    toy.start(size=16)
    table = dict(peer.log)[m.SET_MEM_TABLE]
    gpa, _, user, _ = m.MEMORY_REGION.unpack_from(table, m.MEMORY_HEADER.size)
    sent = {m.VRING_ADDR.unpack(payload)[0]: payload for request, payload in peer.log if request == m.SET_VRING_ADDR}
    for index, ring in enumerate(toy.rings):
        base = user - gpa
        assert sent[index] == m.VRING_ADDR.pack(index, 0, base + ring.desc, base + ring.used, base + ring.avail, 0)
    toy.memory.write(toy.rings[0].desc, b"seen by both")
    assert peer.memory(toy.rings[0].desc, 12) == b"seen by both"


def test_doorbells_are_the_kicks(toy: Bench, peer: Peer) -> None:
    toy.start()
    kick = peer.fds[m.SET_VRING_KICK, 1]
    assert os.eventfd_read(kick) == 1  # what was available before counts
    os.eventfd_write(toy.device.doorbells[1].fd, 3)  # as KVM does
    toy.settle()
    assert os.eventfd_read(kick) == 3


def test_without_an_eventfd_of_the_transport_calls_come_by_the_loop(toy: Bench, peer: Peer) -> None:
    toy.start()
    os.eventfd_write(peer.fds[m.SET_VRING_CALL, 1], 1)
    toy.settle()
    assert toy.transport.queue_interrupts == {1: 1}
    toy.device.reset()
    os.eventfd_write(peer.fds[m.SET_VRING_CALL, 1], 1)
    toy.settle()
    assert toy.transport.queue_interrupts == {1: 1}


def test_calls_are_the_transports_eventfds_and_follow_them(toy: Bench, peer: Peer) -> None:
    vector = EventFd()
    toy.transport.eventfds[0] = vector.fd
    toy.start()
    os.eventfd_write(peer.fds[m.SET_VRING_CALL, 0], 1)
    assert vector.drain() == 1
    toy.settle()
    assert toy.transport.queue_interrupts == {}
    del toy.transport.eventfds[0]
    toy.device.eventfd_changed(0)
    os.eventfd_write(peer.fds[m.SET_VRING_CALL, 0], 1)
    toy.settle()
    assert (vector.drain(), toy.transport.queue_interrupts) == (0, {0: 1})
    vector.close()


def test_a_reset_takes_the_rings_back_and_starts_anew(toy: Bench, peer: Peer) -> None:
    toy.start()
    peer.answers[m.GET_VRING_BASE] = lambda _peer, payload, _fds: m.VRING_STATE.pack(payload[0], 9)
    toy.device.write_status(0)
    assert peer.names()[-2:] == ["GET_VRING_BASE", "GET_VRING_BASE"]
    toy.start()
    assert peer.bases == {0: 0, 1: 0}


def test_rings_outside_ram_never_reach_the_back_end(toy: Bench, peer: Peer) -> None:
    toy.device.write_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
    toy.device.accept_features(1, 1)
    toy.device.write_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)
    queue = toy.device.queues[0]
    queue.areas, queue.ready = [0x1000, 0x2000, 1 << 40], True
    toy.device.write_status(0xF)
    assert toy.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert "SET_VRING_ADDR" not in peer.names()
    assert peer.stopped == 0


def test_saved_and_restored_where_the_back_end_stood(toy: Bench, peer: Peer) -> None:
    toy.start()
    peer.answers[m.GET_VRING_BASE] = lambda _peer, payload, _fds: m.VRING_STATE.pack(payload[0], 5)
    toy.memory.write(toy.rings[0].used + 2, pack("<H", 4))
    state = toy.device.save()
    assert [(queue.last_avail, queue.next_used) for queue in state.queues] == [(5, 4), (5, 0)]
    assert peer.bases == {0: 5, 1: 5}  # it goes on
    toy.device.restore(state)
    assert peer.bases == {0: 5, 1: 5}
    assert toy.device.save() == state


def test_after_the_back_ends_death_everything_is_refused(toy: Bench, peer: Peer, said: list[str]) -> None:
    toy.start()
    ring = toy.rings[1]
    buffers = [toy.buffer(2) for _ in range(4)]
    for buffer in buffers[:3]:
        ring.add([], [buffer])
    toy.device.ring(1)
    toy.memory.write(ring.used + 4, pack("<II", 1, 0))  # the back end answered the second one
    toy.memory.write(ring.used + 2, pack("<H", 1))
    peer.hang_up()
    until(toy, lambda: said)
    toy.settle()
    assert sorted(ring.take_used()) == [(0, 2), (1, 0), (2, 2)]
    assert [toy.memory.read(address, 2) for address, _ in buffers] == [b"no", b"\0\0", b"no", b"\0\0"]
    ring.add([], [buffers[3]])
    toy.kick(1)
    assert ring.take_used() == [(3, 2)]
    assert peer.stopped == 1
    assert said == ["the peer is lost: the peer: it closed the connection"]
    toy.device.write_status(0)
    toy.start()  # a driver that tries again is refused as well
    ring = toy.rings[0]
    ring.add([], [buffers[0]])
    toy.kick(0)
    assert ring.take_used() == [(0, 2)]


@pytest.mark.parametrize("request_", [m.SET_FEATURES, m.SET_VRING_ADDR, m.SET_VRING_KICK, m.GET_VRING_BASE])
@pytest.mark.parametrize("how", ["death", "refusal", "silence"])
def test_a_back_end_may_fail_at_any_request(toy: Bench, peer: Peer, said: list[str], request_: int, how: str) -> None:
    """The driver's register write returns in time, and the device goes on without."""
    answers = {"death": None, "refusal": m.U64.pack(1), "silence": b""}
    if how == "silence":
        peer.raw[request_] = b""
    else:
        peer.answers[request_] = lambda _peer, _payload, _fds: answers[how]
    before = time.monotonic()
    toy.start()
    toy.device.write_status(0)
    assert time.monotonic() - before < 5
    if request_ == m.GET_VRING_BASE and how == "refusal":  # eight bytes are an answer to that one
        return
    assert len(said) == 1
    assert peer.stopped == 1
    toy.start()
    toy.rings[0].add([], [toy.buffer(2)])
    toy.kick(0)
    assert toy.rings[0].take_used() == [(0, 2)]


def test_a_back_end_that_talks_out_of_turn_is_ended(toy: Bench, peer: Peer, said: list[str]) -> None:
    toy.start()
    peer.say(m.HEADER.pack(1, 1, 0))
    until(toy, lambda: said)
    assert "nobody asked for" in said[0]
    assert peer.stopped == 1


@pytest.mark.parametrize("recorded", [False, True])
def test_a_successor_goes_on(said: list[str], recorded: bool) -> None:
    """With a record of what was under way it gets that; else the driver's ring is put in order for it."""
    protocol = PROTOCOL | (1 << m.PROTOCOL_F_INFLIGHT_SHMFD if recorded else 0)
    peer = Peer(protocol=protocol, again=True)
    with bench(Toy(peer, say=said.append)) as toy:
        toy.start()
        ring = toy.rings[0]
        for _ in range(3):
            ring.add([], [toy.buffer(2)])
        toy.memory.write(ring.used + 4, pack("<II", 1, 0))
        toy.memory.write(ring.used + 2, pack("<H", 1))
        if recorded:
            os.pwrite(peer.inflight, b"mine", 0)
        peer.hang_up()
        until(toy, lambda: len(said) == 2)
        assert said[1] == "the peer is back"
        assert peer.bases[0] == 1
        if recorded:
            assert os.pread(peer.fds[m.SET_INFLIGHT_FD, 0], 4, 0) == b"mine"
        else:
            assert toy.memory.read(ring.avail + 4 + 2, 4) == pack("<HH", 0, 2)
        assert os.eventfd_read(peer.fds[m.SET_VRING_KICK, 0]) >= 1
        assert peer.memory(ring.used + 4, 4) == pack("<I", 1)
        toy.device.write_status(0)
        assert not toy.device.fault


def test_other_devices_go_on_while_a_successor_begins(said: list[str]) -> None:
    """The io thread, which is theirs too, does not wait for its answers. Neither does the end of the machine."""
    peer = Peer(again=True)
    with bench(Toy(peer, say=said.append)) as toy:
        toy.start()
        asked, answer = threading.Event(), threading.Event()

        def slow(_peer: Peer, _payload: bytes, _fds: list[int]) -> bytes:
            asked.set()
            answer.wait(30)
            return m.U64.pack(peer.features)

        peer.answers[m.GET_FEATURES] = slow
        peer.hang_up()
        until(toy, asked.is_set)
        before = time.monotonic()
        toy.settle()
        toy.device.write_status(0)
        toy.start()
        assert time.monotonic() - before < 10
        answer.set()
        until(toy, lambda: len(said) == 2)
        assert said[1] == "the peer is back"
        assert peer.bases == {0: 0, 1: 0}
        answer.clear()
        asked.clear()
        peer.hang_up()
        until(toy, asked.is_set)
    assert time.monotonic() - before < 20


def test_a_successor_that_cannot_be_had(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(again=True)
    with bench(Toy(peer, say=said.append)) as toy:
        toy.start()
        toy.rings[0].add([], [toy.buffer(2)])

        def fails() -> None:
            raise CannotRun("it is gone")

        monkeypatch.setattr(peer, "open", fails)
        peer.hang_up()
        until(toy, lambda: len(said) == 4)
        toy.settle()
        assert toy.rings[0].take_used() == [(0, 2)]
        assert said[3] == "the peer is lost: it is gone"
