# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest

from unikvm.devices import fwcfg
from unikvm.devices.fwcfg import FwCfg
from unikvm.memory import GuestMemory

MIB = 1 << 20
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory([(0, MIB)])
    yield made
    made.close()


@pytest.fixture
def device(memory: GuestMemory) -> FwCfg:
    return FwCfg({0x40: b"item"}, {"etc/b": b"second", "etc/a": b"first file"}, memory)


def item(device: FwCfg, key: int, size: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(size))


def transfer(device: FwCfg, memory: GuestMemory, control: int, length: int, target: int, at: int = 0x1000) -> int:
    """By DMA, as SeaBIOS does it: the low half of the address alone. Returns the result."""
    memory.write(at, pack(">IIQ", control, length, target))
    device.write(8, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
    return int.from_bytes(memory.read(at, 4), "big")


def test_items_byte_after_byte() -> None:
    device = FwCfg(fwcfg.numbers(memory=5 << 30, cpus=4, apic_ids=9))
    assert item(device, fwcfg.SIGNATURE, 6) == b"QEMU\0\0"
    assert item(device, fwcfg.ID, 4) == b"\1\0\0\0"  # no DMA
    assert item(device, fwcfg.RAM_SIZE, 8) == (5 << 30).to_bytes(8, "little")
    assert (item(device, fwcfg.NB_CPUS, 2), item(device, fwcfg.MAX_CPUS, 2)) == (b"\4\0", b"\x09\0")
    assert item(device, 99, 2) == b"\0\0"
    device.write(8, 4, 0)  # there is nothing to transfer to


def test_the_directory_names_the_files(device: FwCfg) -> None:
    assert item(device, fwcfg.ID, 1) == b"\3"
    directory = item(device, fwcfg.FILE_DIRECTORY, 4 + 2 * 64)
    assert directory[:4] == pack(">I", 2)
    entries = [unpack(">IHH56s", directory[at : at + 64]) for at in (4, 68)]
    assert [(size, name.rstrip(b"\0")) for size, _, _, name in entries] == [(10, b"etc/a"), (6, b"etc/b")]
    assert item(device, entries[1][1], 7) == b"second\0"


def test_dma(device: FwCfg, memory: GuestMemory) -> None:
    assert bytes(device.read(4 + at, 1) for at in range(8)) == b"QEMU CFG"
    assert device.read(4, 4).to_bytes(4, "little") + device.read(8, 4).to_bytes(4, "little") == b"QEMU CFG"
    memory.write(0x2000, b"\xff" * 64)
    assert transfer(device, memory, 0x40 << 16 | SELECT | READ, 6, 0x2000) == 0
    assert memory.read(0x2000, 8) == b"item\0\0\xff\xff"
    assert transfer(device, memory, 0x20 << 16 | SELECT | SKIP, 6, 0) == 0
    assert transfer(device, memory, READ, 4, 0x2000) == 0
    assert memory.read(0x2000, 4) == b"file"
    assert item(device, 0x20, 2) == b"fi"
    assert device.read(1, 1) == ord("r")


def test_the_address_has_two_halves(device: FwCfg, memory: GuestMemory) -> None:
    memory.write(0x1000, pack(">IIQ", SELECT | READ, 4, 0x2000))
    device.write(4, 4, 0x0100_0000)  # 1, big-endian
    device.write(8, 4, 0x0010_0000)
    assert memory.read(0x2000, 4) == bytes(4)  # 4 GiB further there is no RAM
    device.write(8, 4, 0x0010_0000)  # the high half was used up
    assert memory.read(0x2000, 4) == b"QEMU"


@pytest.mark.parametrize(
    ("control", "length", "target", "result"),
    [
        (READ, 16, MIB - 8, 1),
        (READ, 0xFFFF_FFFF, 0, 1),
        (READ, 4, 1 << 63, 1),
        (READ, 0, 0, 0),
        (WRITE, 4, 0x2000, 1),
        (READ, MIB - 0x4000, 0x4000, 0),  # all zero beyond the item's end
    ],
)
def test_what_a_guest_may_ask_for(
    device: FwCfg, memory: GuestMemory, control: int, length: int, target: int, result: int
) -> None:
    assert transfer(device, memory, 0x40 << 16 | SELECT | control, length, target) == result


@pytest.mark.parametrize("at", [MIB - 8, MIB, 0xFFFF_FFF0])
def test_a_structure_outside_of_ram_is_no_transfer(device: FwCfg, at: int) -> None:
    device.write(8, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))


@pytest.mark.parametrize(("offset", "size"), [(1, 1), (3, 1), (4, 1), (9, 2), (10, 4), (8, 2)])
def test_writes_that_mean_nothing(device: FwCfg, offset: int, size: int) -> None:
    before = device.save()
    device.write(offset, size, (1 << 8 * size) - 1)
    assert device.save() == before


def test_state_round_trip(device: FwCfg, memory: GuestMemory) -> None:
    item(device, 0x40, 2)
    device.write(4, 4, 0x0100_0000)
    other = FwCfg({0x40: b"item"}, {}, memory)
    other.restore(device.save())
    assert other.save() == device.save()
    assert other.read(1, 1) == ord("e")


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="too many"):
        FwCfg({}, {f"etc/{number}": b"" for number in range(17)})
    with pytest.raises(ValueError, match="too long"):
        FwCfg({}, {"x" * 56: b""})
