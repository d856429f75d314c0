# SPDX-License-Identifier: GPL-2.0-only
"""The host bridge and both ways to configuration space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unikvm.bus import Bus
from unikvm.devices.pcihost import ConfigPorts, Ecam, HostBridge
from unikvm.pci import PciBus, PciFunction

ENABLE = 1 << 31


@pytest.fixture
def bus() -> PciBus:
    bus = PciBus(Bus("mmio"), Bus("pio"))
    bus.add(HostBridge())
    bus.add(PciFunction(0x1AF4, 0x1042, 0x018000), 5)
    return bus


def test_bridge_is_one_that_linux_trusts_the_ports_with(bus: PciBus) -> None:
    ports = ConfigPorts(bus)
    ports.write(0, 4, ENABLE)
    assert ports.read(0, 4) == ENABLE
    ports.write(0, 4, ENABLE | 8)
    assert ports.read(4, 4) >> 16 == 0x0600
    assert ports.read(6, 2) == 0x0600


def test_ports(bus: PciBus) -> None:
    ports = ConfigPorts(bus)
    ports.write(0, 4, ENABLE | 5 << 11)
    assert ports.read(4, 4) == 0x1042_1AF4
    assert ports.read(6, 2) == 0x1042
    assert ports.read(5, 1) == 0x1A
    ports.write(0, 4, ENABLE | 5 << 11 | 0x3C)
    ports.write(4, 1, 0x2A)
    assert ports.read(4, 1) == 0x2A
    ports.write(0, 4, ENABLE | 6 << 11)
    assert ports.read(4, 4) == 0xFFFF_FFFF
    ports.write(0, 4, ENABLE | 1 << 16)
    assert ports.read(4, 4) == 0xFFFF_FFFF


def test_ports_without_the_enable_bit(bus: PciBus) -> None:
    ports = ConfigPorts(bus)
    ports.write(0, 4, 5 << 11)
    assert ports.read(4, 4) == 0xFFFF_FFFF
    ports.write(4, 4, 0)


def test_reset_control(bus: PciBus) -> None:
    resets = []
    ports = ConfigPorts(bus, lambda: resets.append(1))
    ports.write(0, 4, ENABLE | 0x600)  # a whole address is not a reset
    ports.write(1, 1, 0x02)
    assert resets == []
    ports.write(1, 1, 0x06)
    assert resets == [1]
    assert ports.read(1, 1) == 0x02
    assert ports.read(0, 4) == ENABLE | 0x600
    ConfigPorts(bus).write(1, 1, 0x06)


def test_save_and_restore(bus: PciBus) -> None:
    ports = ConfigPorts(bus)
    ports.write(0, 4, ENABLE | 5 << 11)
    ports.write(1, 1, 2)
    twin = ConfigPorts(bus)
    twin.restore(ports.save())
    assert twin.save() == ports.save()
    assert twin.read(4, 2) == 0x1AF4


def test_ecam(bus: PciBus) -> None:
    ecam = Ecam(bus)
    assert ecam.read(5 << 15, 4) == 0x1042_1AF4
    assert ecam.read(5 << 15 | 2, 2) == 0x1042
    assert ecam.read(5 << 15 | 0x100, 4) == 0  # no extended capabilities
    assert ecam.read(1 << 20, 4) == 0xFFFF_FFFF
    assert ecam.read(6 << 15, 2) == 0xFFFF
    ecam.write(5 << 15 | 0x3C, 1, 9)
    assert ecam.read(5 << 15 | 0x3C, 1) == 9
    assert ecam.read(5 << 15 | 0xFFE, 4) == 0xFFFF_FFFF  # across the end


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 7), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
        max_size=20,
    )
)
def test_random_port_accesses(accesses: list[tuple[bool, int, int, int]]) -> None:
    bus = PciBus(Bus("mmio"), Bus("pio"))
    bus.add(HostBridge())
    ports = ConfigPorts(bus)
    for is_write, offset, size, value in accesses:
        if is_write:
            ports.write(offset, size, value & ((1 << 8 * size) - 1))
        else:
            assert 0 <= ports.read(offset, size) < 1 << 8 * size
