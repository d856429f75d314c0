# SPDX-License-Identifier: GPL-2.0-only
"""The life of a device: status, features, activation, faults, reset, and reset against the io thread."""

from __future__ import annotations

import threading
import time

import pytest

from unikvm.errors import UnikvmError
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
)
from unikvm.virtio.queue import Queue
from unikvm.virtio.rng import Rng
from unit.virtio.driver import ALIVE, AWAKE, Bench, bench

V1 = 1 << VIRTIO_F_VERSION_1


def offer(it: Bench) -> None:
    it.rings[0].add([], [it.buffer(4)])


def test_initialisation() -> None:
    with bench(Rng()) as it:
        it.start()
        assert it.device.status == ALIVE
        assert it.device.queues[0].active


@pytest.mark.parametrize("features", [0, V1 | 1 << 60, 1 << VIRTIO_RING_F_EVENT_IDX])
def test_features_that_cannot_be_agreed(features: int) -> None:
    with bench(Rng()) as it:
        it.start(features=features)
        assert it.device.status == AWAKE  # neither FEATURES_OK nor DRIVER_OK
        assert not it.device.queues[0].active


def test_features_are_final_once_agreed() -> None:
    with bench(Rng()) as it:
        it.start(features=V1)
        it.device.accept_features(0, 0xFFFF_FFFF)
        assert it.device.driver_features == V1


def test_feature_words() -> None:
    device = Rng()
    assert device.offered_features(1) == 1
    assert device.offered_features(2) == 0
    assert device.offered_features(0xFFFF_FFFF) == 0


def test_buffers_offered_before_driver_ok_are_served_after() -> None:
    with bench(Rng()) as it:
        it.device.write_status(AWAKE)
        it.start()
        it.device.write_status(0)
        it.start()
        it.device.write_status(0)
        it.device.write_status(AWAKE)
        it.device.accept_features(1, 1)
        it.device.write_status(AWAKE | VIRTIO_CONFIG_S_FEATURES_OK)
        ring = it.rings[0]
        ring.__init__(it.memory, it.allocator, ring.size)  # type: ignore[misc]
        ring.set_up(it.device.queues[0])
        offer(it)
        it.kick(0)
        assert ring.take_used() == []  # §3.1.1: not before DRIVER_OK
        it.device.write_status(ALIVE)
        it.settle()
        assert len(ring.take_used()) == 1


def test_a_fault_needs_a_reset_and_serves_nothing_more() -> None:
    with bench(Rng()) as it:
        it.start()
        offer(it)
        it.rings[0].offer(0xFFFF)
        it.kick(0)
        assert it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
        assert it.transport.config_interrupts == 1
        assert len(it.rings[0].take_used()) == 1  # what came before the fault
        it.kick(0)
        assert it.transport.config_interrupts == 1
        it.device.write_status(ALIVE | VIRTIO_CONFIG_S_FAILED)
        assert it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET  # only a reset takes it away
        it.device.write_status(0)
        assert it.device.status == 0
        it.start()
        offer(it)
        it.kick(0)
        assert len(it.rings[0].take_used()) == 1


def test_bad_rings_at_driver_ok() -> None:
    with bench(Rng()) as it:
        device = it.device
        device.write_status(AWAKE)
        device.accept_features(1, 1)
        device.write_status(AWAKE | VIRTIO_CONFIG_S_FEATURES_OK)
        device.queues[0].areas = [1 << 60] * 3
        device.enable_queue(device.queues[0])
        device.write_status(ALIVE)
        assert device.status == ALIVE | VIRTIO_CONFIG_S_NEEDS_RESET
        assert "not RAM" in device.fault


def test_driver_ok_without_features_ok() -> None:
    with bench(Rng()) as it:
        it.device.write_status(AWAKE | VIRTIO_CONFIG_S_DRIVER_OK)
        assert it.device.status == AWAKE


def test_doorbell_out_of_range() -> None:
    with bench(Rng()) as it:
        it.device.ring(7)


def test_save_and_restore() -> None:
    with bench(Rng(bytes)) as it:
        it.start()
        offer(it)
        it.kick(0)
        offer(it)
        state = it.device.save()
        twin = Rng(bytes)
        twin.connect(it.memory, it.loop, it.transport)
        it.device.reset()
        twin.restore(state)
        assert twin.save() == state
        it.settle()
        assert len(it.rings[0].take_used()) == 2  # the second by the twin
        twin.close()


def test_restore_of_another_device() -> None:
    class Other(Rng):
        device_id = 99

    with bench(Rng()) as it, bench(Other()) as other, pytest.raises(UnikvmError, match="another device"):
        other.device.restore(it.device.save())


def test_reset_while_the_io_thread_serves() -> None:
    """Once a reset has returned, no callback of the old life writes to guest memory."""

    class Slow(Rng):
        served = 0

        def process(self, queue: Queue) -> None:
            for chain in queue.available():
                time.sleep(0.0005)
                chain.write(b"\xff" * chain.writable_len)
                queue.add_used(chain)
                Slow.served += 1

    with bench(Slow()) as it:
        thread = threading.Thread(target=it.loop.run)
        try:
            thread.start()
            for _ in range(20):
                it.allocator.next = 0x10000
                it.memory.write(0x10000, bytes(0x10000))
                it_start(it)
                for _ in range(32):
                    it.rings[0].add([], [it.buffer(16)])
                it.device.ring(0)
                time.sleep(0.003)
                it.device.write_status(0)
                it.memory.write(0x10000, bytes(0x10000))
                it.device.ring(0)
                time.sleep(0.003)
                assert not any(it.memory.read(0x10000, 0x10000))
        finally:
            it.loop.stop()
            thread.join()
        assert Slow.served


def it_start(it: Bench) -> None:
    """`Bench.start` while the loop runs on another thread."""
    settle, it.settle = it.settle, lambda rounds=0: None  # type: ignore[method-assign]
    it.start()
    it.settle = settle  # type: ignore[method-assign]
