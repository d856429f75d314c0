# SPDX-License-Identifier: GPL-2.0-only
"""virtio-pci as Linux's virtio_pci_modern_dev.c meets it, BARs that move, and garbage in every register."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.bus import Bus
from unikvm.errors import UnikvmError
from unikvm.pci import PCI_COMMAND, PciBus
from unikvm.sys.eventloop import EventLoop
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_PCI_CAP_COMMON_CFG,
    VIRTIO_PCI_CAP_DEVICE_CFG,
    VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG,
    VIRTIO_PCI_CAP_PCI_CFG,
)
from unikvm.virtio.console import Console
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.pci import BAR_SIZE, VirtioPci
from unikvm.virtio.port import Port
from unikvm.virtio.rng import Rng
from unit.virtio.driver import ALIVE, AWAKE, Allocator, FakeIrq, Ioeventfds, Ring, make_memory

BASE = 0xC000_0000
NO_VECTOR = VIRTIO_MSI_NO_VECTOR


class Guest:
    """The driver's side of one virtio-pci function, through the buses alone."""

    def __init__(self, device: VirtioDevice) -> None:
        self.memory = make_memory()
        self.loop = EventLoop()
        self.mmio = Bus("mmio")
        self.bus = PciBus(self.mmio)
        self.irq = FakeIrq()
        self.kvm = Ioeventfds()
        self.device = device
        self.function = VirtioPci(
            device,
            memory=self.memory,
            loop=self.loop,
            irq=self.irq,
            add_ioeventfd=self.kvm.add,
            remove_ioeventfd=self.kvm.remove,
        )
        self.devfn = self.bus.add(self.function)
        self.bus.assign_bars(BASE, BASE + 0x10_0000)
        self.config(PCI_COMMAND, 2, 6)
        self.capabilities = self.walk()
        self.allocator = Allocator()

    def read(self, offset: int, size: int) -> int:
        return self.bus.config_read(0, self.devfn, offset, size)

    def config(self, offset: int, size: int, value: int) -> None:
        self.bus.config_write(0, self.devfn, offset, size, value)

    def walk(self) -> dict[int, tuple[int, int, int]]:
        """Vendor capabilities: type to (configuration offset, address in the BAR, length)."""
        found = {}
        at = self.read(0x34, 1)
        while at:
            if self.read(at, 1) == 9:
                kind, bar = self.read(at + 3, 1), self.read(at + 4, 1)
                assert bar == 0
                assert self.read(at + 2, 1) >= 16
                found[kind] = (at, self.read(at + 8, 4), self.read(at + 12, 4))
            at = self.read(at + 1, 1)
        return found

    def get(self, offset: int, size: int, kind: int = VIRTIO_PCI_CAP_COMMON_CFG) -> int:
        return self.mmio.read(BASE + self.capabilities[kind][1] + offset, size)

    def put(self, offset: int, size: int, value: int, kind: int = VIRTIO_PCI_CAP_COMMON_CFG) -> None:
        self.mmio.write(BASE + self.capabilities[kind][1] + offset, size, value)

    def enable_msix(self, vectors: int) -> None:
        self.config(self.function.msix.capability + 2, 2, 0x8000)
        for index in range(vectors):
            self.mmio.write(BASE + 0x4000 + 16 * index, 4, 0xFEE0_0000)
            self.mmio.write(BASE + 0x4000 + 16 * index + 8, 4, 0x40 + index)
            self.mmio.write(BASE + 0x4000 + 16 * index + 12, 4, 0)

    def features(self) -> int:
        words = []
        for select in (0, 1):
            self.put(0, 4, select)
            words.append(self.get(4, 4))
        return words[0] | words[1] << 32

    def start(self) -> list[Ring]:
        """As Linux's probe: reset, features, queues with vectors, DRIVER_OK."""
        self.put(20, 1, 0)
        assert self.get(20, 1) == 0
        self.put(20, 1, 1)
        self.put(20, 1, AWAKE)
        accepted = self.features()
        for select in (0, 1):
            self.put(8, 4, select)
            self.put(12, 4, accepted >> 32 * select & 0xFFFF_FFFF)
        self.put(20, 1, AWAKE | VIRTIO_CONFIG_S_FEATURES_OK)
        assert self.get(20, 1) & VIRTIO_CONFIG_S_FEATURES_OK
        rings = []
        for index in range(self.get(18, 2)):
            self.put(22, 2, index)
            size = self.get(24, 2)
            assert size
            assert self.get(28, 2) == 0  # not enabled yet
            ring = Ring(self.memory, self.allocator, size)
            self.put(24, 2, size)
            for at, area in ((32, ring.desc), (40, ring.avail), (48, ring.used)):
                self.put(at, 4, area & 0xFFFF_FFFF)
                self.put(at + 4, 4, area >> 32)
            self.put(26, 2, index + 1)
            assert self.get(26, 2) == index + 1
            assert self.get(30, 2) == index
            self.put(28, 2, 1)
            assert self.get(28, 2) == 1
            rings.append(ring)
        self.put(16, 2, 0)
        assert self.get(16, 2) == 0
        self.put(20, 1, ALIVE)
        assert self.get(20, 1) == ALIVE
        return rings

    def settle(self) -> None:
        for _ in range(3):
            self.loop.stop()
            self.loop.run()

    def notify(self, queue: int, offset: int = 0) -> None:
        self.put(4 * queue + offset, 2, queue, VIRTIO_PCI_CAP_NOTIFY_CFG)
        self.settle()

    def close(self) -> None:
        self.function.close()
        self.loop.close()
        self.memory.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    it = Guest(Rng(bytes))
    yield it
    it.close()


def test_identity(guest: Guest) -> None:
    assert guest.read(0, 4) == 0x1044_1AF4
    assert guest.read(8, 1) >= 1
    assert guest.read(0x2E, 2) >= 0x40
    assert guest.read(0x3D, 1) == 0  # no INTx pin


def test_capabilities(guest: Guest) -> None:
    caps = guest.capabilities
    assert set(caps) == {
        VIRTIO_PCI_CAP_COMMON_CFG,
        VIRTIO_PCI_CAP_NOTIFY_CFG,
        VIRTIO_PCI_CAP_ISR_CFG,
        VIRTIO_PCI_CAP_PCI_CFG,
    }
    assert caps[VIRTIO_PCI_CAP_COMMON_CFG][2] >= 56
    assert guest.read(caps[VIRTIO_PCI_CAP_NOTIFY_CFG][0] + 16, 4) == 4
    assert caps[VIRTIO_PCI_CAP_NOTIFY_CFG][2] >= 4
    for _, offset, length in caps.values():
        assert offset + length <= BAR_SIZE


def test_device_configuration() -> None:
    guest = Guest(Console(Port(), [Port("one")], columns=80, rows=25))
    assert guest.capabilities[VIRTIO_PCI_CAP_DEVICE_CFG][2] == 12
    assert guest.get(0, 2, VIRTIO_PCI_CAP_DEVICE_CFG) == 80
    assert guest.get(4, 4, VIRTIO_PCI_CAP_DEVICE_CFG) == 2
    guest.put(0, 4, 0xFFFF_FFFF, VIRTIO_PCI_CAP_DEVICE_CFG)
    assert guest.get(0, 4, VIRTIO_PCI_CAP_DEVICE_CFG) == 80 | 25 << 16
    assert guest.get(18, 2) == 6
    guest.start()
    assert len(guest.kvm.registered) == 6
    guest.close()


def test_a_driver_gets_its_data_and_its_interrupt(guest: Guest) -> None:
    guest.enable_msix(2)
    (ring,) = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.notify(0)
    assert ring.take_used() == [(0, 64)]
    assert guest.irq.vectors[1].message == (0xFEE0_0000, 0x41)
    assert guest.irq.vectors[1].count == 1
    assert guest.get(0, 1, VIRTIO_PCI_CAP_ISR_CFG) == 0  # §4.1.4.5: not with MSI-X


def test_doorbells_are_ioeventfds(guest: Guest) -> None:
    notify = BASE + guest.capabilities[VIRTIO_PCI_CAP_NOTIFY_CFG][1]
    assert guest.kvm.registered == {(notify, 0, None): guest.device.doorbells[0].fd}


def test_bar_moves_and_the_doorbells_with_it(guest: Guest) -> None:
    guest.config(PCI_COMMAND, 2, 4)
    assert guest.kvm.registered == {}
    guest.config(0x10, 4, 0xFFFF_FFFF)
    assert guest.read(0x10, 4) == (1 << 32) - BAR_SIZE
    guest.config(0x10, 4, 0xD000_0000)
    guest.config(PCI_COMMAND, 2, 6)
    assert [key[0] >> 28 for key in guest.kvm.registered] == [0xD]
    assert guest.mmio.read(0xD000_0000 + 18, 2) == 1
    assert guest.mmio.read(BASE + 18, 2) == 0xFFFF


def test_doorbell_that_kvm_refuses(guest: Guest) -> None:
    def refuse(*_: object) -> None:
        raise UnikvmError("EEXIST")

    guest.function._add_ioeventfd = refuse
    guest.config(PCI_COMMAND, 2, 4)
    guest.config(PCI_COMMAND, 2, 6)
    assert guest.kvm.registered == {}
    guest.enable_msix(2)
    (ring,) = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.notify(0)
    assert ring.take_used() == [(0, 64)]


def test_isr_without_msix(guest: Guest) -> None:
    (ring,) = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.notify(0)
    assert guest.get(0, 1, VIRTIO_PCI_CAP_ISR_CFG) == 1
    assert guest.get(0, 1, VIRTIO_PCI_CAP_ISR_CFG) == 0
    ring.offer(0xFFFF)
    guest.notify(0)
    assert guest.get(20, 1) & VIRTIO_CONFIG_S_NEEDS_RESET
    assert guest.get(0, 1, VIRTIO_PCI_CAP_ISR_CFG) == 3


def test_fault_interrupts_through_the_config_vector(guest: Guest) -> None:
    guest.enable_msix(2)
    (ring,) = guest.start()
    ring.offer(0xFFFF)
    guest.notify(0)
    assert [vector.count for vector in guest.irq.vectors] == [1, 0]
    generation = guest.get(21, 1)
    guest.put(20, 1, 0)
    assert guest.get(20, 1) == 0
    assert guest.get(21, 1) == generation
    guest.put(22, 2, 0)
    assert (guest.get(26, 2), guest.get(16, 2), guest.get(28, 2)) == (NO_VECTOR, NO_VECTOR, 0)


def test_vectors_that_are_not_there(guest: Guest) -> None:
    guest.put(26, 2, 2)
    assert guest.get(26, 2) == NO_VECTOR
    guest.put(16, 2, 0xFFFE)
    assert guest.get(16, 2) == NO_VECTOR


def test_queue_that_is_not_there(guest: Guest) -> None:
    guest.put(22, 2, 1)
    assert guest.get(24, 2) == 0  # how drivers notice
    for offset in range(24, 56, 2):
        guest.put(offset, 2, 1)
        guest.put(offset & ~3, 4, 1)
    assert not guest.device.queues[0].ready


def test_queue_set_up_is_final_once_enabled(guest: Guest) -> None:
    guest.put(32, 4, 0x1000)
    guest.put(36, 4, 0x2)
    guest.put(28, 2, 1)
    guest.put(32, 4, 0x9000)
    guest.put(24, 2, 8)
    assert guest.get(32, 8) == 0x2_0000_1000
    assert guest.get(24, 2) == 64
    guest.put(28, 2, 0)
    assert guest.get(28, 2) == 1


def test_wide_and_narrow_accesses(guest: Guest) -> None:
    guest.put(32, 8, 0x1234_5678_9ABC_DEF0)
    assert guest.get(32, 8) == 0x1234_5678_9ABC_DEF0
    assert guest.get(33, 2) == 0xBCDE
    assert guest.get(20, 4) == 0  # status, generation, queue_select
    guest.put(33, 2, 0)
    assert guest.get(32, 4) == 0x9ABC_DEF0  # part of a register: dropped


def test_window_in_configuration_space(guest: Guest) -> None:
    """§4.1.4.9: registers reached without the BAR."""
    at = guest.capabilities[VIRTIO_PCI_CAP_PCI_CFG][0]
    guest.config(PCI_COMMAND, 2, 0)

    def access(offset: int, size: int) -> None:
        guest.config(at + 4, 1, 0)
        guest.config(at + 8, 4, offset)
        guest.config(at + 12, 4, size)

    access(18, 2)
    assert guest.read(at + 16, 2) == 1
    access(20, 1)
    guest.config(at + 16, 1, AWAKE)
    assert guest.read(at + 16, 1) == AWAKE == guest.device.status
    for offset, size in ((20, 3), (BAR_SIZE, 4), (19, 4), (0xFFFF_FFFF, 1)):
        access(offset, size)
        guest.config(at + 16, 4, 0)
        guest.read(at + 16, 4)
    assert guest.device.status == AWAKE
    guest.config(at + 4, 1, 3)
    guest.config(at + 16, 1, 0)
    assert guest.device.status == AWAKE


def test_save_and_restore(guest: Guest) -> None:
    guest.enable_msix(2)
    (ring,) = guest.start()
    ring.add([], [(0x30_0000, 64)])
    guest.put(22, 2, 0)
    state = guest.function.save()
    twin = Guest(Rng(bytes))
    for region in guest.memory.regions:
        twin.memory.write(region.gpa, guest.memory.read(region.gpa, region.size))
    twin.function.restore(state)
    assert twin.function.save() == state
    assert twin.kvm.registered.keys() == guest.kvm.registered.keys()
    twin.settle()
    ring.memory = twin.memory
    assert ring.take_used() == [(0, 64)]
    assert twin.irq.vectors[1].count == 2  # one at the restore, in case one was pending; one for the buffer
    twin.close()


ACCESS = st.tuples(
    st.sampled_from(["config read", "config write", "read", "write"]),
    st.one_of(st.integers(0, 64), st.integers(0x4000, 0x4040), st.integers(0, BAR_SIZE - 1), st.integers(0, 4095)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 16), st.sampled_from([0x1000, ALIVE, 0xFFFF_FFFF]), st.integers(0, (1 << 64) - 1)),
)


@pytest.mark.parametrize("kind", ["rng", "console"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(accesses=st.lists(ACCESS, max_size=60))
def test_garbage_everywhere(kind: str, accesses: list[tuple[str, int, int, int]]) -> None:
    """Every register and every byte of configuration space takes anything, and nothing is raised."""
    guest = Guest(Rng(bytes) if kind == "rng" else Console(Port(), [Port("a")], columns=1, rows=1))
    guest.enable_msix(2)
    guest.start()
    for what, offset, size, wide in accesses:
        value = wide & ((1 << 8 * size) - 1)
        address = (guest.function.bar.address or BASE) + min(offset, BAR_SIZE - size)
        if what == "config read":
            assert 0 <= guest.read(offset, size) < 1 << 8 * size
        elif what == "config write":
            guest.config(offset, size, value)
        elif what == "read":
            assert 0 <= guest.mmio.read(address, size) < 1 << 8 * size
        else:
            guest.mmio.write(address, size, value)
    guest.settle()
    guest.close()
    assert all(vector.closed for vector in guest.irq.vectors)
    assert guest.kvm.registered == {}


def test_a_device_that_left_is_deaf(guest: Guest) -> None:
    """Another vCPU may be in an access that began before the removal: it changes nothing, and makes no vector."""
    guest.bus.remove(guest.devfn)
    guest.function.close()
    assert not guest.kvm.registered
    made = len(guest.irq.vectors)
    for offset in range(0, BAR_SIZE, 4):
        guest.function.write(offset, 4, 0xFFFF_FFFF)
        guest.function.write(offset, 4, 0x0000_000F)
        assert guest.function.read(0x14, 1) == 0
    guest.function.config_write(guest.function.msix.capability + 2, 2, 0x8000)
    assert len(guest.irq.vectors) == made
    assert guest.device.status == 0
    guest.function.close()  # twice is once
