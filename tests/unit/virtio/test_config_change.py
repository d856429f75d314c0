# SPDX-License-Identifier: GPL-2.0-only
"""A disk whose back end says that it has grown, or something else, or nothing more."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from struct import pack

import pytest

from unikvm.errors import CannotRun
from unikvm.vhost import channel
from unikvm.vhost import messages as m
from unikvm.virtio.vhostblk import CONFIG_SIZE, VhostBlk
from unit.vhost.peer import Peer
from unit.vhost.test_requests import LISTENING, message

from .driver import Bench, bench

SECONDS = 20.0
SECTORS = 1000


def config(sectors: int, rest: int = 0) -> bytes:
    return pack("<Q", sectors).ljust(CONFIG_SIZE, bytes([rest]))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel.Channel.__init__, "__kwdefaults__", {"seconds": 1.0})
    monkeypatch.setattr("unikvm.vhost.backend.RESTART_SECONDS", 0.01)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def peer() -> Peer:
    peer = Peer(protocol=LISTENING, again=True)
    peer.config = config(SECTORS)
    return peer


@pytest.fixture
def disk(peer: Peer, said: list[str]) -> Iterator[Bench]:
    with bench(VhostBlk(peer, path="disk", say=said.append)) as it:
        yield it


def until(bench: Bench, condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        bench.settle(1)
        time.sleep(0.002)


def sectors(bench: Bench) -> int:
    return bench.device.read_config(0, 8)


def test_the_driver_is_told_and_only_of_the_capacity(disk: Bench, peer: Peer, said: list[str]) -> None:
    disk.start()
    generation = disk.device.config_generation
    peer.config = config(SECTORS + 8, rest=0xFF)
    with peer.own() as own:
        own.sendall(message())
        until(disk, lambda: sectors(disk) == SECTORS + 8)
        assert disk.device.config[8:] == config(SECTORS)[8:]
        assert disk.transport.config_interrupts == 1
        assert disk.device.config_generation == generation + 1
        own.sendall(message(flags=m.VERSION | m.NEED_REPLY))  # nothing is new
        own.settimeout(SECONDS)
        until(disk, lambda: peer.names().count("GET_CONFIG") == 3)
        assert own.recv(100)[-8:] == bytes(8)
    disk.settle()
    assert disk.transport.config_interrupts == 1
    assert not said


def test_a_driver_that_is_not_there_yet_finds_it(disk: Bench, peer: Peer) -> None:
    peer.config = config(SECTORS + 1)
    with peer.own() as own:
        own.sendall(message())
        until(disk, lambda: sectors(disk) == SECTORS + 1)
    assert not disk.transport.config_interrupts
    disk.start()
    disk.device.write_status(0)
    assert sectors(disk) == SECTORS + 1


@pytest.mark.parametrize("size", [0, SECTORS - 1])
def test_a_smaller_disk_is_the_end_of_the_back_end(disk: Bench, peer: Peer, said: list[str], size: int) -> None:
    disk.start()
    peer.config = config(size)
    peer.again = False
    with peer.own() as own:
        own.sendall(message())
        until(disk, lambda: said)
    assert said == [f"the peer is lost: the peer has a smaller disk now: {size * 512} bytes instead of {SECTORS * 512}"]
    assert sectors(disk) == SECTORS
    assert peer.stopped == 1


def test_nonsense_is_the_end_of_the_back_end(disk: Bench, peer: Peer, said: list[str]) -> None:
    disk.start()
    with peer.own() as own:
        own.sendall(message(flags=m.VERSION | m.REPLY))
        until(disk, lambda: said)
    assert "the peer is lost: the peer sends request 2 with flags 0x5" in said[0]


def test_silence_holds_nobody_up(disk: Bench, peer: Peer, said: list[str]) -> None:
    """A back end that asks for it to be read, and does not answer, is ended when its time is over."""
    disk.start()
    peer.raw[m.GET_CONFIG] = message(m.GET_CONFIG, flags=m.VERSION | m.REPLY, size=12 + CONFIG_SIZE)[:5]
    longest = 0.0
    peer.again = False
    with peer.own() as own:
        own.sendall(message() * 100)
        end = time.monotonic() + SECONDS
        while not said:
            before = time.monotonic()
            disk.settle(1)
            longest = max(longest, time.monotonic() - before)
            assert before < end
            time.sleep(0.005)
    assert "in time" in said[0]
    assert longest < 0.5


def test_the_answer_does_not_wait_for_the_devices_lock(disk: Bench, peer: Peer) -> None:
    """Who holds it may be waiting for a back end that waits for this."""
    disk.start()
    answered = threading.Event()

    def wait_for_answer(_peer: Peer, payload: bytes, _fds: list[int]) -> bytes:
        own.sendall(message(flags=m.VERSION | m.NEED_REPLY))
        if own.recv(100)[-8:] == bytes(8):
            answered.set()
        return payload

    with peer.own() as own:
        own.settimeout(SECONDS)
        peer.answers[m.GET_VRING_BASE] = wait_for_answer
        reset = threading.Thread(target=disk.device.reset)
        reset.start()
        until(disk, answered.is_set)
        reset.join()


def test_a_connection_without_the_other(disk: Bench, peer: Peer, said: list[str]) -> None:
    disk.start()
    with peer.own() as own:
        own.shutdown(2)
    listening = len(disk.loop._callbacks)
    until(disk, lambda: len(disk.loop._callbacks) == listening - 1)  # else it would be heard of again and again
    disk.device.reset()
    assert not said
    assert not peer.stopped


def test_a_successor_may_have_grown_and_is_listened_to(disk: Bench, peer: Peer, said: list[str]) -> None:
    disk.start()
    listening = len(disk.loop._callbacks)
    peer.config = config(SECTORS + 8)
    peer.hang_up()
    until(disk, lambda: said)
    assert len(disk.loop._callbacks) == listening - 2
    until(disk, lambda: len(said) == 2)
    assert said[1] == "the peer is back"
    assert len(disk.loop._callbacks) == listening
    assert sectors(disk) == SECTORS + 8
    assert disk.transport.config_interrupts == 1
    peer.config = config(SECTORS + 16)
    with peer.own() as own:
        own.sendall(message())
        until(disk, lambda: sectors(disk) == SECTORS + 16)
    peer.config = config(SECTORS + 8)
    peer.hang_up()
    until(disk, lambda: len(said) >= 4)
    assert "has a smaller disk now" in said[3]


def test_the_back_end_makes_it_larger(peer: Peer) -> None:
    asked: list[int] = []
    with bench(VhostBlk(peer, path="disk", grow=asked.append)) as it:
        it.start()
        assert isinstance(it.device, VhostBlk)
        it.device.grow(SECTORS * 1024)
        assert (asked, sectors(it), it.transport.config_interrupts) == ([SECTORS * 1024], SECTORS * 2, 1)
        with pytest.raises(CannotRun, match="no disk becomes smaller"):
            it.device.grow(SECTORS * 512)
        with pytest.raises(CannotRun, match="does not grow by itself"):
            it.device.grow()
        with pytest.raises(CannotRun, match="a multiple of 512"):
            it.device.grow(SECTORS * 2048 + 1)
        it.device.readonly = True
        with pytest.raises(CannotRun, match="read-only"):
            it.device.grow(SECTORS * 2048)
    assert len(asked) == 1


def test_two_who_make_it_larger_do_not_make_it_smaller(peer: Peer) -> None:
    asked: list[int] = []

    def slow(size: int) -> None:
        time.sleep(0.2)
        asked.append(size)

    def grow(size: int) -> None:
        with contextlib.suppress(CannotRun):
            device.grow(size)

    device = VhostBlk(peer, grow=slow)
    with bench(device):
        sizes = [SECTORS * 512 * factor for factor in (3, 2)]
        threads = [threading.Thread(target=grow, args=(size,)) for size in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked == sorted(asked)
        assert device.size == sizes[0]


def test_a_back_end_that_cannot(disk: Bench) -> None:
    assert isinstance(disk.device, VhostBlk)
    with pytest.raises(CannotRun, match="the peer cannot make it larger"):
        disk.device.grow(SECTORS * 1024)
    assert sectors(disk) == SECTORS
