# SPDX-License-Identifier: GPL-2.0-only
"""The socket device that the kernel serves: both rings at once, and a driver that learns its new number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from unikvm.virtio.vsock import Vsock
from unit.virtio.driver import Bench, bench

KERNEL = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
CID = 0x1234_5678
EVENT = 2


class FakeKernel:
    """Remembers what it was told, and does not take a ring that runs."""

    def __init__(self, features: int = KERNEL) -> None:
        self.features = features
        self.rings: dict[int, int] = {}
        self.fds: dict[tuple[str, int], int] = {}
        self.running = False
        self.refuses = False
        self.closed = 0
        self.lives = 1
        self.knows_memory = False

    def begin_again(self, cid: int) -> None:
        assert cid == CID
        self.lives += 1
        self.rings.clear()
        self.fds.clear()
        self.running = self.knows_memory = False

    def set_memory(self, regions: list[tuple[int, int, int]]) -> None:
        assert regions
        self.knows_memory = True

    def set_features(self, bits: int) -> None:
        assert not self.running
        self.accepted = bits

    def set_ring(self, index: int, *, base: int, **_ring: int) -> None:
        assert not self.running
        assert self.knows_memory
        assert ("error", index) in self.fds
        self.rings[index] = base

    def set_kick(self, index: int, fd: int) -> None:
        self.fds["kick", index] = fd

    def set_call(self, index: int, fd: int) -> None:
        self.fds["call", index] = fd

    def set_error(self, index: int, fd: int) -> None:
        self.fds["error", index] = fd

    def run(self, running: bool) -> None:
        assert set(self.rings) >= {0, 1}
        if running and self.refuses:
            raise OSError(14, os.strerror(14))
        self.running = running

    def position(self, index: int) -> int:
        assert not self.running
        return 5 + index

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def vsock(kernel: Any) -> Iterator[Bench]:
    with bench(Vsock(kernel, CID)) as it:
        yield it


def test_both_rings_run_and_the_event_queue_is_ours(vsock: Bench, kernel: FakeKernel) -> None:
    vsock.start()
    assert kernel.running
    assert set(kernel.rings) == {0, 1}
    assert kernel.accepted == vsock.device.driver_features
    assert vsock.device.read_config(0, 8) == CID


def test_resets_end_all_connections(vsock: Bench, kernel: FakeKernel) -> None:
    vsock.device.write_status(0)
    assert kernel.lives == 1  # there was none
    for life in range(2):
        vsock.start()
        assert kernel.running
        assert kernel.lives == 1 + life
        assert kernel.rings == {0: 0, 1: 0}
        vsock.device.write_status(0)
        assert not kernel.running
        assert kernel.lives == 2 + life


def test_one_ring_that_goes_and_comes(vsock: Bench, kernel: FakeKernel) -> None:
    vsock.start()
    queue = vsock.device.queues[0]
    vsock.device.disable_queue(queue)
    assert not kernel.running
    vsock.rings[0].set_up(queue)
    queue.ready = False
    vsock.device.enable_queue(queue)
    assert kernel.running


def test_rings_that_the_kernel_refuses(vsock: Bench, kernel: FakeKernel) -> None:
    kernel.refuses = True
    vsock.start()
    assert vsock.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    kernel.refuses = False
    vsock.device.write_status(0)
    vsock.start()
    assert kernel.running


def test_what_the_kernel_finds_malformed(vsock: Bench, kernel: FakeKernel) -> None:
    vsock.start()
    os.write(kernel.fds["error", 1], (1).to_bytes(8, "little"))
    vsock.settle()
    assert vsock.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert not kernel.running


def test_no_event_without_a_reason(vsock: Bench) -> None:
    vsock.start()
    vsock.rings[EVENT].add([], [vsock.buffer(4)])
    vsock.kick(EVENT)
    assert vsock.rings[EVENT].take_used() == []


def test_snapshot_and_the_new_number(vsock: Bench, kernel: FakeKernel) -> None:
    vsock.start()
    address, _ = vsock.buffer(b"\xff" * 4)
    head = vsock.rings[EVENT].add([], [(address, 4)])
    state = vsock.device.save()
    assert kernel.running
    assert [queue.last_avail for queue in state.queues] == [5, 6, 0]
    vsock.device.restore(state)
    vsock.settle()
    assert kernel.running
    assert kernel.rings == {0: 5, 1: 6}
    assert vsock.rings[EVENT].take_used() == [(head, 4)]
    assert bytes(vsock.memory.view(address, 4)) == bytes(4)
    assert vsock.transport.queue_interrupts[EVENT] == 1
    vsock.rings[EVENT].add([], [vsock.buffer(4)])
    vsock.kick(EVENT)
    assert vsock.rings[EVENT].take_used() == []  # once is enough


def test_a_driver_without_a_buffer_learns_it_later(vsock: Bench) -> None:
    vsock.start()
    vsock.device.restore(vsock.device.save())
    vsock.settle()
    vsock.rings[EVENT].add([], [vsock.buffer(4)])
    vsock.kick(EVENT)
    assert len(vsock.rings[EVENT].take_used()) == 1


def test_an_event_buffer_without_room(vsock: Bench) -> None:
    vsock.start()
    vsock.device.restore(vsock.device.save())
    vsock.rings[EVENT].add([vsock.buffer(b"abcd")], [])
    vsock.kick(EVENT)
    assert vsock.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_it_is_closed_once(kernel: Any) -> None:
    device = Vsock(kernel, CID)
    with bench(device) as it:
        it.start()
    device.discard()
    assert kernel.closed == 1
    assert not kernel.running


def test_a_kernel_that_is_too_old() -> None:
    old: Any = FakeKernel(features=0)
    with pytest.raises(CannotRun, match="devices from before virtio"):
        Vsock(old, CID)
