# SPDX-License-Identifier: GPL-2.0-only
"""What PC firmware needs beside a PC's other devices: flash, the chipset's identity, some ports."""

from __future__ import annotations

import pytest

from unikvm.bus import Bus
from unikvm.devices import i440fx
from unikvm.devices.firmware_ports import PM_TIMER_HZ, DebugConsole, PmTimer, SystemControl
from unikvm.devices.pflash import BLOCK, Pflash
from unikvm.pci import PciBus

ARRAY, PROGRAM, ERASE, CONFIRM, CLEAR, STATUS, ID = 0xFF, 0x10, 0x20, 0xD0, 0x50, 0x70, 0x90


class Flash:
    def __init__(self) -> None:
        self.array = bytearray(b"\xff" * 3 * BLOCK)
        self.visible = [True]
        self.changes: list[tuple[int, int]] = []
        self.chip = Pflash(memoryview(self.array), self.visible.append, lambda s, e: self.changes.append((s, e)))

    def write(self, offset: int, *values: int) -> None:
        for value in values:
            self.chip.write(offset, 1, value)


def test_flash_is_told_from_rom_and_ram() -> None:
    """As OVMF does: a command does not stay where it was written, and the status is 0 after it was cleared."""
    flash = Flash()
    flash.write(0, CLEAR)
    assert flash.chip.read(0, 1) == 0xFF
    flash.write(0, STATUS)
    assert flash.visible[-1] is False  # or its read would not come here
    assert flash.chip.read(0, 1) == 0x00
    flash.write(0, ARRAY)
    assert flash.visible[-1] is True
    assert flash.chip.read(0, 4) == 0xFFFF_FFFF


def test_flash_is_programmed_and_erased() -> None:
    flash = Flash()
    for at, value in enumerate(b"data", 10):
        flash.write(at, PROGRAM, value)
    assert flash.visible == [True, False]  # once for all of them
    assert flash.chip.read(10, 1) == 0x80
    assert flash.changes == []
    flash.write(13, ARRAY)
    assert bytes(flash.array[9:15]) == b"\xffdata\xff"
    assert flash.changes == [(10, 14)]
    flash.write(10, PROGRAM, 0xF0, ARRAY)
    assert flash.array[10] == ord("d") & 0xF0  # bits are cleared, never set
    flash.write(BLOCK + 5, ERASE, CONFIRM, ARRAY)
    assert flash.changes[-1] == (BLOCK, 2 * BLOCK)
    flash.write(5, ERASE, CONFIRM, ARRAY)
    assert set(flash.array) == {0xFF}


def test_flash_commands_that_go_wrong() -> None:
    flash = Flash()
    flash.write(0, ERASE, ARRAY)  # not confirmed
    assert flash.chip.read(0, 1) == 0xB0
    flash.write(0, CLEAR, 0x12)  # unknown
    assert flash.visible[-1] is True
    flash.write(0, ID)
    assert (flash.chip.read(0, 1), flash.chip.read(1, 1), flash.chip.read(2, 1)) == (0x89, 0x18, 0)
    end = len(flash.array) - 1
    flash.write(0, ARRAY, PROGRAM)
    flash.chip.write(end, 4, 0)
    assert flash.array[end] == 0
    assert len(flash.array) == 3 * BLOCK


def test_flash_state_round_trip() -> None:
    flash, other = Flash(), Flash()
    flash.write(7, PROGRAM, 1, PROGRAM)
    other.chip.restore(flash.chip.save())
    assert other.chip.save() == flash.chip.save()
    assert other.visible[-1] is False
    other.write(8, 2, ARRAY)
    assert bytes(other.array[7:9]) == b"\1\2"
    assert other.changes == [(0, 3 * BLOCK)]  # nobody there had heard of any of it


def test_system_control_port() -> None:
    resets: list[bool] = []
    port = SystemControl(lambda: resets.append(True))
    port.write(0, 1, 0x00)
    assert port.read(0, 1) & 0x02  # A20 stays on
    assert not resets
    port.write(0, 1, 0x05)
    assert resets
    other = SystemControl(lambda: None)
    other.restore(port.save())
    assert other.read(0, 1) == port.read(0, 1) == 0x06


def test_pm_timer() -> None:
    now = [0]
    timer = PmTimer(lambda: now[0])
    assert timer.read(0, 4) == 0
    now[0] = 1_000_000_000
    assert timer.read(0, 4) == PM_TIMER_HZ
    assert timer.read(1, 1) == PM_TIMER_HZ >> 8 & 0xFF
    now[0] = 10_000_000_000
    assert timer.read(0, 4) == 10 * PM_TIMER_HZ & 0xFF_FFFF
    timer.write(0, 4, 0)
    other = PmTimer(lambda: 5)
    other.restore(timer.save())
    assert other.read(0, 4) == timer.read(0, 4)


def test_debug_console() -> None:
    lines: list[str] = []
    console = DebugConsole(lines.append)
    assert console.read(0, 1) == 0xE9
    for byte in b"Hello\r\n\x1b[2J\nrest":
        console.write(0, 1, byte)
    assert lines == ["Hello", ".[2J"]
    other = DebugConsole(lines.append)
    other.restore(console.save())
    other.write(0, 1, 0x0A)
    assert lines[-1] == "rest"
    for _ in range(5000):
        other.write(0, 1, ord("x"))
    assert [len(line) for line in lines[3:]] == [1000] * 5


def test_chipset() -> None:
    bus = PciBus(Bus("mmio"))
    bus.add(i440fx.host_bridge(), 0)
    bus.add(i440fx.isa_bridge(), 1, 0)
    bus.add(i440fx.power_management(0x600), 1, 3)
    assert bus.config_read(0, 0, 0, 4) == 0x1237_8086
    assert bus.config_read(0, 0, 0x2C, 4) == 0x1100_1AF4
    assert bus.config_read(0, 8, 0x0E, 1) == 0x80  # two functions
    assert bus.config_read(0, 8, 9, 3) == 0x060100
    for devfn, offset, size, value in ((11, 0x40, 4, 0x601), (11, 0x80, 1, 1), (11, 0x58, 4, 1 << 25)):
        bus.config_write(0, devfn, offset, size, 0xB001)
        assert bus.config_read(0, devfn, offset, size) == value


@pytest.mark.parametrize("register", range(0x59, 0x60))
def test_shadow_registers_keep_what_is_written(register: int) -> None:
    bridge = i440fx.host_bridge()
    assert bridge.config_read(register, 1) == 0
    bridge.config_write(register, 1, 0x33)
    assert bridge.config_read(register, 1) == 0x33
