# SPDX-License-Identifier: GPL-2.0-only
"""virtio-mmio as Linux's virtio_mmio.c meets it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.bus import Bus
from unikvm.sys.eventloop import EventLoop
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_ID_RNG
from unikvm.virtio.console import Console
from unikvm.virtio.mmio import LENGTH, VirtioMmio
from unikvm.virtio.port import Port
from unikvm.virtio.rng import Rng
from unit.virtio.driver import ALIVE, AWAKE, Allocator, Ioeventfds, Ring, make_memory

BASE = 0xFEB0_0000


class Line:
    def __init__(self) -> None:
        self.level = False
        self.pulses = 0

    def set(self, level: bool) -> None:
        self.level = level

    def pulse(self) -> None:
        self.pulses += 1


class Guest:
    def __init__(self, *, edge: bool = False) -> None:
        self.memory = make_memory()
        self.loop = EventLoop()
        self.bus = Bus("mmio")
        self.kvm = Ioeventfds()
        self.line = Line()
        self.transport = VirtioMmio(
            Rng(bytes),
            address=BASE,
            bus=self.bus,
            memory=self.memory,
            loop=self.loop,
            line=self.line,
            add_ioeventfd=self.kvm.add,
            remove_ioeventfd=self.kvm.remove,
            edge=edge,
        )
        self.allocator = Allocator()

    def get(self, offset: int, size: int = 4) -> int:
        return self.bus.read(BASE + offset, size)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(BASE + offset, size, value)

    def start(self) -> Ring:
        self.put(0x70, 0)
        assert self.get(0x70) == 0
        self.put(0x70, AWAKE)
        accepted = 0
        for select in (0, 1):
            self.put(0x14, select)
            word = self.get(0x10)
            accepted |= word << 32 * select
            self.put(0x24, select)
            self.put(0x20, word)
        self.put(0x70, AWAKE | VIRTIO_CONFIG_S_FEATURES_OK)
        assert self.get(0x70) & VIRTIO_CONFIG_S_FEATURES_OK
        self.put(0x30, 0)
        assert self.get(0x44) == 0
        size = self.get(0x34)
        ring = Ring(self.memory, self.allocator, size)
        self.put(0x38, size)
        for at, area in ((0x80, ring.desc), (0x90, ring.avail), (0xA0, ring.used)):
            self.put(at, area & 0xFFFF_FFFF)
            self.put(at + 4, area >> 32)
        self.put(0x44, 1)
        assert self.get(0x44) == 1
        self.put(0x70, ALIVE)
        return ring

    def settle(self) -> None:
        for _ in range(3):
            self.loop.stop()
            self.loop.run()

    def close(self) -> None:
        self.transport.close()
        self.loop.close()
        self.memory.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    it = Guest()
    yield it
    it.close()
    assert it.kvm.registered == {}
    assert it.bus.ranges() == ()


def test_identity(guest: Guest) -> None:
    assert [guest.get(at) for at in (0, 4, 8)] == [0x7472_6976, 2, VIRTIO_ID_RNG]
    guest.put(0x30, 1)
    assert guest.get(0x34) == 0
    assert guest.get(0xB0) == 0xFFFF_FFFF
    assert guest.get(0x100) == 0
    assert guest.get(0xFFC) == 0


def test_doorbell_is_an_ioeventfd_with_datamatch(guest: Guest) -> None:
    assert guest.kvm.registered == {(BASE + 0x50, 4, 0): guest.transport.device.doorbells[0].fd}


def test_level_interrupt(guest: Guest) -> None:
    ring = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.put(0x50, 0)
    guest.settle()
    assert ring.take_used() == [(0, 64)]
    assert guest.line.level
    assert guest.get(0x60) == 1
    guest.put(0x64, 2)
    assert guest.line.level
    guest.put(0x64, 1)
    assert not guest.line.level
    assert guest.get(0x60) == 0


def test_edge_interrupt() -> None:
    guest = Guest(edge=True)
    ring = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.put(0x50, 0)
    guest.settle()
    assert (guest.line.pulses, guest.line.level, guest.get(0x60)) == (1, False, 1)
    guest.close()


def test_fault_and_reset(guest: Guest) -> None:
    ring = guest.start()
    ring.offer(0xFFFF)
    guest.put(0x50, 0)
    guest.settle()
    assert guest.get(0x70) & VIRTIO_CONFIG_S_NEEDS_RESET
    assert guest.get(0x60) == 2
    guest.put(0x70, 0)
    assert (guest.get(0x70), guest.get(0x60), guest.line.level) == (0, 0, False)
    ring = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.put(0x50, 0)
    guest.settle()
    assert len(ring.take_used()) == 1


def test_queue_taken_out_of_service(guest: Guest) -> None:
    ring = guest.start()
    guest.put(0x44, 0)
    assert guest.get(0x44) == 0
    ring.add([], [(0x30_0000, 64)])
    guest.put(0x50, 0)
    guest.settle()
    assert ring.take_used() == []
    guest.put(0x44, 1)
    guest.settle()
    assert guest.get(0x44) == 1


def test_save_and_restore(guest: Guest) -> None:
    ring = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.put(0x50, 0)
    guest.settle()
    state = guest.transport.save()
    twin = Guest()
    for region in guest.memory.regions:
        twin.memory.write(region.gpa, guest.memory.read(region.gpa, region.size))
    twin.transport.restore(state)
    assert twin.transport.save() == state
    assert twin.line.level
    assert twin.get(0x60) == 1
    twin.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.integers(0, 0x110), st.integers(0, LENGTH - 1)),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.integers(0, 16), st.integers(0, (1 << 64) - 1)),
        ),
        max_size=60,
    )
)
def test_garbage_everywhere(accesses: list[tuple[bool, int, int, int]]) -> None:
    guest = Guest()
    guest.start()
    for is_write, position, size, value in accesses:
        offset = min(position, LENGTH - size)
        if is_write:
            guest.put(offset, value & ((1 << 8 * size) - 1), size)
        else:
            assert 0 <= guest.get(offset, size) < 1 << 8 * size
    guest.settle()
    guest.close()


def test_console_without_multiport() -> None:
    device = Console(Port())
    assert device.queue_sizes == (64, 64, 32, 32)
