# SPDX-License-Identifier: GPL-2.0-only
"""PCI functions: write masks, BARs that the guest sizes and moves, capabilities, MSI-X, the bus."""

from __future__ import annotations

import pytest

from unikvm.bus import Bus
from unikvm.errors import UnikvmError
from unikvm.msix import MSIX_ENABLE, MSIX_FUNCTION_MASK, Msix
from unikvm.pci import (
    BAR_IO,
    BAR_MEM64,
    BAR_PREFETCHABLE,
    PCI_BAR0,
    PCI_CAPABILITIES,
    PCI_COMMAND,
    PCI_COMMAND_IO,
    PCI_COMMAND_MEMORY,
    PCI_STATUS,
    PciBus,
    PciFunction,
)


class Device:
    """Answers with its name's length, and remembers writes."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Slot:
    """A function on a bus, with a BAR."""

    def __init__(self, size: int = 0x1000, flags: int = 0) -> None:
        self.mmio = Bus("mmio")
        self.pio = Bus("pio")
        self.bus = PciBus(self.mmio, self.pio)
        self.function = PciFunction(0x1AF4, 0x1044, 0x00FF00, revision=1, subsystem=(0x1AF4, 0x1100))
        self.moves: list[int | None] = []
        self.bar = self.function.add_bar(0, size, Device(), flags, self.moves.append)
        self.devfn = self.bus.add(self.function)

    def read(self, offset: int, size: int) -> int:
        return self.bus.config_read(0, self.devfn, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bus.config_write(0, self.devfn, offset, size, value)

    def mapped(self) -> list[int]:
        return [start for start, _, _ in self.mmio.ranges()]


def test_header() -> None:
    slot = Slot()
    assert slot.read(0, 4) == 0x1044_1AF4
    assert slot.read(8, 4) == 0x00FF_0001
    assert slot.read(0x2C, 4) == 0x1100_1AF4
    assert slot.read(0x0E, 1) == 0
    slot.write(0, 4, 0)
    slot.write(8, 4, 0xFFFF_FFFF)
    assert slot.read(0, 4) == 0x1044_1AF4
    assert slot.read(8, 4) == 0x00FF_0001
    slot.write(0x3C, 1, 0xFF)
    assert slot.read(0x3C, 4) == 0xFF


def test_bits_that_are_cleared_by_ones() -> None:
    function = PciFunction(1, 2, 3)
    function.set(0x50, 2, 0x0F0F)
    function.set_clearing(0x50, 2, 0x0103)
    function.config_write(0x50, 2, 0xFF01)
    assert function.config_read(0x50, 2) == 0x0E0E


def test_sizing_as_linux_does_it() -> None:
    slot = Slot()
    slot.function.assign(slot.bar, 0xC000_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mapped() == [0xC000_0000]
    slot.write(PCI_COMMAND, 2, 0)
    assert slot.mapped() == []
    slot.write(PCI_BAR0, 4, 0xFFFF_FFFF)
    assert slot.read(PCI_BAR0, 4) == 0xFFFF_F000
    slot.write(PCI_BAR0, 4, 0xC000_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mmio.read(0xC000_0012, 1) == 0x12
    assert slot.moves == [0xC000_0000, None, 0xC000_0000]


def test_sizing_while_decoding() -> None:
    slot = Slot()
    slot.function.assign(slot.bar, 0xC000_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    slot.write(PCI_BAR0, 4, 0xFFFF_FFFF)
    assert slot.mapped() == []
    slot.write(PCI_BAR0, 4, 0xD000_0000)
    assert slot.mapped() == [0xD000_0000]


def test_64_bit_bar() -> None:
    slot = Slot(0x8000, BAR_MEM64 | BAR_PREFETCHABLE)
    slot.write(PCI_BAR0, 4, 0xFFFF_FFFF)
    slot.write(PCI_BAR0 + 4, 4, 0xFFFF_FFFF)
    assert (slot.read(PCI_BAR0, 4), slot.read(PCI_BAR0 + 4, 4)) == (0xFFFF_800C, 0xFFFF_FFFF)
    slot.write(PCI_BAR0, 4, 0x0000_8000)
    slot.write(PCI_BAR0 + 4, 4, 0x12)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mapped() == [0x12_0000_8000]
    with pytest.raises(UnikvmError):
        slot.function.add_bar(1, 16, Device())


def test_io_bar() -> None:
    slot = Slot(0x20, BAR_IO)
    slot.write(PCI_BAR0, 4, 0xFFFF_FFFF)
    assert slot.read(PCI_BAR0, 4) == 0xFFFF_FFE1
    slot.write(PCI_BAR0, 4, 0x1000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.pio.ranges() == ()
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_IO)
    assert [start for start, _, _ in slot.pio.ranges()] == [0x1000]


def test_bar_over_something_else_stays_unmapped() -> None:
    slot = Slot()
    slot.mmio.add(0xFEC0_0000, 0x1000, Device())
    slot.write(PCI_BAR0, 4, 0xFEC0_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mapped() == [0xFEC0_0000]
    assert slot.moves == []
    slot.write(PCI_BAR0, 4, 0xC000_0000)
    assert slot.moves == [0xC000_0000]


@pytest.mark.parametrize(("index", "size", "flags"), [(0, 24, 0), (6, 16, 0), (5, 16, BAR_MEM64), (0, 8, 0)])
def test_impossible_bars(index: int, size: int, flags: int) -> None:
    with pytest.raises(UnikvmError):
        PciFunction(1, 2, 3).add_bar(index, size, Device(), flags)


def test_capabilities() -> None:
    slot = Slot()
    first = slot.function.add_capability(9, b"abcdef", b"\0\xff")
    second = slot.function.add_capability(17, b"\0" * 10)
    assert slot.read(PCI_STATUS, 2) & 0x10
    assert slot.read(PCI_CAPABILITIES, 1) == first
    assert slot.read(first, 2) == second << 8 | 9
    assert slot.read(second, 2) == 17
    slot.write(first, 4, 0)
    assert slot.function.config[first : first + 5] == bytes([9, second]) + b"a\0c"
    with pytest.raises(UnikvmError):
        slot.function.add_capability(1, bytes(200))


def test_slots() -> None:
    slot = Slot()
    assert slot.devfn == 0
    assert slot.bus.add(PciFunction(1, 2, 3)) == 1 << 3
    assert slot.bus.add(PciFunction(1, 2, 3), 1, 2) == 1 << 3 | 2
    assert slot.bus.config_read(0, 1 << 3, 0x0E, 1) == 0x80
    with pytest.raises(UnikvmError):
        slot.bus.add(PciFunction(1, 2, 3), 1)
    for _ in range(30):
        slot.bus.add(PciFunction(1, 2, 3))
    with pytest.raises(UnikvmError):
        slot.bus.add(PciFunction(1, 2, 3))


def test_nobody_home() -> None:
    slot = Slot()
    assert slot.bus.config_read(0, 0x88, 0, 4) == 0xFFFF_FFFF
    assert slot.bus.config_read(1, 0, 0, 2) == 0xFFFF
    slot.bus.config_write(0, 0x88, 4, 2, 7)


def test_assign_bars() -> None:
    bus = PciBus(Bus("mmio"))
    small, large, high = (PciFunction(1, 2, 3) for _ in range(3))
    bars = [
        small.add_bar(0, 0x10, Device()),
        large.add_bar(2, 0x10000, Device()),
        high.add_bar(0, 0x4000, Device(), BAR_MEM64),
    ]
    for function in (small, large, high):
        bus.add(function)
    bus.assign_bars(0xC000_0800, 0xC003_0000, 0x10_0000_0000, 0x10_0001_0000)
    placed = [
        function.get(bar.offset, bar.width) & ~0xF for function, bar in zip((small, large, high), bars, strict=True)
    ]
    assert placed == [0xC002_0000, 0xC001_0000, 0x10_0000_0000]
    with pytest.raises(UnikvmError, match="no room"):
        bus.assign_bars(0xC000_0000, 0xC000_1000)


class Vector:
    def __init__(self) -> None:
        self.fd = -1
        self.events: list[object] = []
        self.masked = True
        self.waiting = False

    def trigger(self) -> None:
        self.waiting = self.masked
        self.events.append("pending" if self.masked else "sent")

    def update(self, address: int, data: int) -> None:
        if data == 0xBAD:
            raise UnikvmError("KVM refuses")
        self.events.append((address, data))

    def mask(self, masked: bool) -> None:
        self.masked = masked
        self.events.append(masked)

    @property
    def pending(self) -> bool:
        return self.waiting

    def close(self) -> None:
        self.events.append("closed")


class Table:
    """An MSI-X table of 3 vectors."""

    def __init__(self) -> None:
        self.vectors: list[Vector] = []
        self.function = PciFunction(1, 2, 3)
        self.msix = Msix(self.function, 3, self._make, bar=1, table_offset=0x4000, pending_offset=0x5000)

    def _make(self) -> Vector:
        self.vectors.append(Vector())
        return self.vectors[-1]

    def control(self, value: int) -> None:
        self.function.config_write(self.msix.capability + 2, 2, value)

    def entry(self, index: int, address: int, data: int, masked: int) -> None:
        self.msix.write(16 * index, 8, address)
        self.msix.write(16 * index + 8, 4, data)
        self.msix.write(16 * index + 12, 4, masked)


def test_msix_capability() -> None:
    table = Table()
    at = table.msix.capability
    assert table.function.config_read(at, 1) == 0x11
    assert table.function.config_read(at + 2, 2) == 2
    assert table.function.config_read(at + 4, 4) == 0x4001
    assert table.function.config_read(at + 8, 4) == 0x5001
    table.control(0xFFFF)
    assert table.function.config_read(at + 2, 2) == 0xC002
    assert all(table.msix.read(16 * index + 12, 4) == 1 for index in range(3))


def test_msix_message_is_handed_over_once_at_the_unmasking() -> None:
    table = Table()
    table.control(MSIX_ENABLE | MSIX_FUNCTION_MASK)
    table.entry(1, 0xFEE0_0000, 0x41, 0)
    assert table.vectors == []
    table.control(MSIX_ENABLE)
    assert table.vectors[0].events == [(0xFEE0_0000, 0x41), False]
    table.msix.trigger(1)
    assert table.vectors[0].events[-1] == "sent"
    assert table.msix.read(16, 8) == 0xFEE0_0000
    table.control(0)
    assert table.vectors[0].masked


def test_msix_pending_bits() -> None:
    table = Table()
    table.control(MSIX_ENABLE)
    table.msix.trigger(2)
    assert table.msix.read_pending(0, 8) == 4
    assert table.msix.read_pending(0, 1) == 4
    assert table.msix.read_pending(8, 8) == 0
    table.entry(2, 0xFEE0_0000, 0x42, 0)
    assert not table.vectors[0].masked


def test_msix_message_that_kvm_refuses() -> None:
    table = Table()
    table.control(MSIX_ENABLE)
    table.entry(0, 0xFEE0_0000, 0xBAD, 0)
    assert table.vectors[0].masked
    table.msix.write(8, 4, 0x30)
    assert not table.vectors[0].masked


def test_msix_odd_accesses() -> None:
    table = Table()
    before = table.msix.save()
    for offset, size in ((0, 1), (1, 4), (4, 8), (48, 4), (44, 8), (1000, 4)):
        table.msix.write(offset, size, (1 << 8 * size) - 1)
    assert table.msix.save() == before
    assert table.msix.read(1000, 4) == 0


def test_msix_restore() -> None:
    table = Table()
    table.control(MSIX_ENABLE)
    table.entry(0, 0xFEE0_1000, 0x55, 0)
    twin = Table()
    twin.function.restore_config(table.function.save_config())
    twin.msix.restore(table.msix.save())
    assert twin.vectors[0].events == [(0xFEE0_1000, 0x55), False]
    assert twin.msix.save() == table.msix.save()
    twin.msix.close()
    assert twin.vectors[0].events[-1] == "closed"


def test_a_function_that_left_maps_nothing() -> None:
    slot = Slot()
    slot.function.assign(slot.bar, 0xC000_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mapped() == [0xC000_0000]
    assert slot.bus.remove(slot.devfn) is slot.function
    assert slot.mapped() == []
    assert slot.moves == [0xC000_0000, None]
    assert slot.read(0, 4) == 0xFFFF_FFFF
    slot.function.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)  # by an access that began before
    slot.function.remap()
    assert slot.mapped() == []
    assert slot.bus.remove(slot.devfn) is None


def test_the_lowest_free_slot_is_taken() -> None:
    slot = Slot()
    others = [PciFunction(1, 2, 3) for _ in range(3)]
    assert [slot.bus.add(other) for other in others] == [1 << 3, 2 << 3, 3 << 3]
    slot.bus.remove(1 << 3)
    slot.bus.remove(2 << 3)
    assert slot.bus.add(PciFunction(1, 2, 3)) == 1 << 3


def test_a_bar_over_one_that_leaves() -> None:
    """The guest puts a BAR over another: it is unmapped there, until the other one is gone."""
    slot = Slot()
    other = PciFunction(1, 2, 3)
    bar = other.add_bar(0, 0x1000, Device())
    devfn = slot.bus.add(other)
    for at in (slot.devfn, devfn):
        slot.bus.config_write(0, at, PCI_BAR0, 4, 0xC000_0000)
        slot.bus.config_write(0, at, PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert (slot.bar.address, bar.address) == (0xC000_0000, None)
    slot.bus.remove(slot.devfn)
    assert bar.address == 0xC000_0000
    assert slot.mapped() == [0xC000_0000]


def test_a_ghost_answers_until_its_place_is_wanted() -> None:
    slot = Slot()
    slot.function.assign(slot.bar, 0xC000_0000)
    slot.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    slot.bus.remove(slot.devfn, ghost=True)
    assert slot.read(0, 4) == 0xFFFF_FFFF
    assert slot.mapped() == [0xC000_0000]
    other = PciFunction(1, 2, 3)
    bar = other.add_bar(0, 0x4000, Device())
    devfn = slot.bus.add(other)
    slot.bus.config_write(0, devfn, PCI_BAR0, 4, 0xBFFF_E000 & ~0x3FFF)
    slot.bus.config_write(0, devfn, PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert slot.mapped() == [0xBFFF_C000, 0xC000_0000]
    slot.bus.config_write(0, devfn, PCI_BAR0, 4, 0xC000_0000)
    assert bar.address == 0xC000_0000
    assert slot.mapped() == [0xC000_0000]
    assert slot.bar.address is None
