# SPDX-License-Identifier: GPL-2.0-only
"""virtio-mem: blocks come and go as the host wishes and the driver asks, and never otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest

from unikvm.errors import UnikvmError
from unikvm.memory import GuestMemory
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_NEEDS_RESET
from unikvm.uapi.virtio_mem import (
    VIRTIO_MEM_REQ_PLUG,
    VIRTIO_MEM_REQ_STATE,
    VIRTIO_MEM_REQ_UNPLUG,
    VIRTIO_MEM_REQ_UNPLUG_ALL,
    VIRTIO_MEM_RESP_ACK,
    VIRTIO_MEM_RESP_BUSY,
    VIRTIO_MEM_RESP_ERROR,
    VIRTIO_MEM_RESP_NACK,
    VIRTIO_MEM_STATE_MIXED,
    VIRTIO_MEM_STATE_PLUGGED,
    VIRTIO_MEM_STATE_UNPLUGGED,
)
from unikvm.virtio.mem import BLOCK, Mem
from unit.virtio import driver
from unit.virtio.driver import RAM, Bench, bench

START = 4 << 30
BLOCKS = 8
PLUG, UNPLUG, ALL, STATE = (
    VIRTIO_MEM_REQ_PLUG,
    VIRTIO_MEM_REQ_UNPLUG,
    VIRTIO_MEM_REQ_UNPLUG_ALL,
    VIRTIO_MEM_REQ_STATE,
)
ACK, NACK, ERROR = VIRTIO_MEM_RESP_ACK, VIRTIO_MEM_RESP_NACK, VIRTIO_MEM_RESP_ERROR


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    def make(*, shared: bool) -> GuestMemory:
        return GuestMemory([(0, RAM)], shared=shared, pluggable=(START, BLOCKS * BLOCK))

    monkeypatch.setattr(driver, "make_memory", make)
    with bench(Mem(START, BLOCKS * BLOCK)) as running:
        running.start()
        yield running


def mem(it: Bench) -> Mem:
    assert isinstance(it.device, Mem)
    return it.device


def ask(it: Bench, kind: int, block: int = 0, count: int = 0, *, address: int | None = None) -> tuple[int, int]:
    """(type, state) of the answer."""
    at = START + block * BLOCK if address is None else address
    answer = it.buffer(10)
    it.rings[0].add([it.buffer(pack("<H6xQH6x", kind, at, count))], [answer])
    it.kick(0)
    assert it.rings[0].take_used()[0][1] == 10
    kind, state = unpack("<H6xH", it.memory.read(*answer))
    return kind, state


def test_no_more_than_was_requested(it: Bench) -> None:
    assert ask(it, PLUG, 0, 1)[0] == NACK
    mem(it).requested = 3 * BLOCK
    assert it.transport.config_interrupts == 1
    assert ask(it, PLUG, 0, 4)[0] == NACK
    assert ask(it, PLUG, 2, 2)[0] == ACK
    assert ask(it, PLUG, 0, 2)[0] == NACK
    assert ask(it, PLUG, 4, 1)[0] == ACK
    assert mem(it).plugged == 3 * BLOCK
    assert mem(it).read_config(40, 8) == 3 * BLOCK  # plugged_size


def test_states(it: Bench) -> None:
    mem(it).requested = 2 * BLOCK
    ask(it, PLUG, 1, 2)
    assert ask(it, STATE, 1, 2) == (ACK, VIRTIO_MEM_STATE_PLUGGED)
    assert ask(it, STATE, 0, 3) == (ACK, VIRTIO_MEM_STATE_MIXED)
    assert ask(it, STATE, 3, 5) == (ACK, VIRTIO_MEM_STATE_UNPLUGGED)


def test_what_is_pulled_out_is_empty_when_it_comes_back(it: Bench) -> None:
    mem(it).requested = 4 * BLOCK
    ask(it, PLUG, 0, 4)
    for block in range(4):
        it.memory.write(START + block * BLOCK, b"secret")
    assert ask(it, UNPLUG, 1, 2)[0] == ACK
    assert mem(it).plugged == 2 * BLOCK
    assert it.memory.read(START, 6) == b"secret"
    assert ask(it, PLUG, 1, 2)[0] == ACK
    assert it.memory.read(START + BLOCK, 6) == it.memory.read(START + 2 * BLOCK, 6) == bytes(6)
    it.memory.write(START + 7 * BLOCK, b"smuggled")
    assert ask(it, ALL)[0] == ACK
    assert mem(it).plugged == 0
    assert it.memory.read(START, 6) == it.memory.read(START + 7 * BLOCK, 8)[:6] == bytes(6)


@pytest.mark.parametrize(
    ("kind", "address", "count"),
    [
        (PLUG, START + 1, 1),
        (PLUG, START - BLOCK, 1),
        (PLUG, START + BLOCKS * BLOCK, 1),
        (PLUG, START + 7 * BLOCK, 2),
        (PLUG, START, 0),
        (PLUG, START + BLOCK, 2),  # one of them is plugged in
        (PLUG, 0, 1),
        (PLUG, (1 << 64) - BLOCK, 65535),
        (UNPLUG, START, 3),
        (UNPLUG, START + 3 * BLOCK, 1),
        (STATE, START + 7 * BLOCK, 2),
        (17, START, 1),
    ],
)
def test_wrong_requests(it: Bench, kind: int, address: int, count: int) -> None:
    mem(it).requested = BLOCKS * BLOCK
    ask(it, PLUG, 0, 2)
    it.memory.write(START, b"mine")
    assert ask(it, kind, count=count, address=address)[0] == ERROR
    assert mem(it).plugged == 2 * BLOCK
    assert it.memory.read(START, 4) == b"mine"


@pytest.mark.parametrize(("request_size", "answer_size"), [(23, 10), (24, 9), (24, 0), (0, 10)])
def test_short_requests(it: Bench, request_size: int, answer_size: int) -> None:
    it.rings[0].add([it.buffer(request_size)] if request_size else [], [it.buffer(answer_size)] if answer_size else [])
    it.kick(0)
    assert it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_a_host_without_memory_is_busy(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mem(it).requested = BLOCK
    monkeypatch.setattr(it.memory, "take", lambda *_: False)
    assert ask(it, PLUG, 0, 1)[0] == VIRTIO_MEM_RESP_BUSY
    assert mem(it).plugged == 0


def test_a_reset_leaves_memory_alone_and_a_snapshot_keeps_it(it: Bench) -> None:
    mem(it).requested = 2 * BLOCK
    ask(it, PLUG, 3, 2)
    it.device.write_status(0)
    assert (mem(it).plugged, mem(it).requested) == (2 * BLOCK, 2 * BLOCK)
    it.start()
    state = it.device.save()
    ask(it, ALL)
    mem(it).requested = 0
    it.device.restore(state)
    assert (mem(it).plugged, mem(it).requested) == (2 * BLOCK, 2 * BLOCK)
    with bench(Mem(START, 4 * BLOCK)) as other, pytest.raises(UnikvmError, match="another region"):
        other.device.restore(state)
