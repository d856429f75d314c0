# SPDX-License-Identifier: GPL-2.0-only
"""The devices of a page: i8042, isa-debug-exit, pvpanic, pc-testdev, ACPI fixed hardware."""

from __future__ import annotations

import pytest

from unikvm.devices import testdev as testdev_module
from unikvm.devices.acpipm import POWER_BUTTON, AcpiPm, ResetRegister
from unikvm.devices.debugexit import DebugExit
from unikvm.devices.i8042 import I8042
from unikvm.devices.pvpanic import PvPanic


class Line:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


class Keyboard:
    def __init__(self) -> None:
        self.line = Line()
        self.resets = 0
        self.chip = I8042(self.line, self.reset)

    def reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *parameters: int) -> int | None:
        """Issue a command; its answer, or None."""
        assert self.chip.command.read(0, 1) & 2 == 0  # never busy
        self.chip.command.write(0, 1, value)
        for parameter in parameters:
            self.chip.data.write(0, 1, parameter)
        return self.chip.data.read(0, 1) if self.chip.command.read(0, 1) & 1 else None


def test_i8042_self_tests() -> None:
    keyboard = Keyboard()
    assert keyboard.command(0xAA) == 0x55
    assert keyboard.command(0xAB) == 0x00
    assert keyboard.command(0xA9) == 0x01  # no mouse port
    assert keyboard.command(0xD3, 0x5A) == 0x5A
    assert keyboard.command(0xD0) == 0x03
    assert keyboard.chip.command.read(0, 1) & 0x21 == 0  # nothing left, and nothing is the mouse's
    keyboard.chip.data.write(0, 1, 0xF2)
    assert keyboard.chip.data.read(0, 1) == 0xFE  # no keyboard either


def test_i8042_control_byte_and_interrupt() -> None:
    keyboard = Keyboard()
    assert keyboard.command(0x60, 0x45) is None
    assert keyboard.command(0x20) == 0x45
    keyboard.command(0xAD)
    keyboard.command(0xA7)
    assert keyboard.command(0x20) == 0x75
    keyboard.command(0xAE)
    keyboard.command(0xA8)
    assert keyboard.command(0x20) == 0x45
    keyboard.chip.command.write(0, 1, 0xAA)
    assert keyboard.line.level
    keyboard.chip.data.read(0, 1)
    assert not keyboard.line.level


@pytest.mark.parametrize(("commands", "resets"), [((0xFE,), 1), ((0xF0,), 1), ((0xFF,), 0), ((0xD1, 0x02), 1)])
def test_i8042_reset(commands: tuple[int, ...], resets: int) -> None:
    keyboard = Keyboard()
    keyboard.command(*commands)
    assert keyboard.resets == resets
    keyboard.command(0xD1, 0x03)
    assert keyboard.resets == resets


def test_i8042_state_round_trip() -> None:
    keyboard = Keyboard()
    keyboard.command(0x60, 0x01)
    keyboard.chip.command.write(0, 1, 0xAA)
    keyboard.chip.command.write(0, 1, 0x60)
    state = keyboard.chip.save()
    other = Keyboard()
    other.chip.restore(state)
    assert vars(other.chip.save()) == vars(state)
    assert other.line.level
    assert other.chip.data.read(0, 1) == 0x55


def test_debug_exit() -> None:
    seen: list[int] = []
    port = DebugExit(seen.append)
    assert port.read(0, 4) == 0
    port.write(0, 4, 0x1234)
    assert seen == [0x1234]
    port.restore(port.save())


def test_pvpanic() -> None:
    seen: list[int] = []
    port = PvPanic(seen.append)
    assert port.read(0, 1) == 3
    port.write(0, 1, 1)
    port.write(0, 1, 0x82)
    port.write(0, 1, 0x80)
    assert seen == [1, 2]
    port.restore(port.save())


def test_testdev() -> None:
    lines: list[tuple[int, bool]] = []
    pages: list[int] = []
    device = testdev_module.TestDev(lambda line, level: lines.append((line, level)), pages.append)
    device.register.write(0, 4, 0x1234_5678)
    assert device.byte_register.read(1, 2) == 0x3456
    device.byte_register.write(3, 1, 0xAB)
    assert device.register.read(0, 4) == 0xAB34_5678
    device.flush.write(0, 4, 0x12_3456)
    device.lines.write(5, 1, 1)
    device.lines.write(5, 1, 0)
    assert pages == [0x12_3000]
    assert lines == [(5, True), (5, False)]
    device.iomem.write(0x100, 8, 0x0123_4567_89AB_CDEF)
    assert device.iomem.read(0x102, 2) == 0x89AB
    device.iomem.write(testdev_module.IOMEM_SIZE - 1, 4, 0xFFFF_FF77)
    assert device.iomem.read(testdev_module.IOMEM_SIZE - 1, 4) == 0x77
    assert len(device.iomem.data) == testdev_module.IOMEM_SIZE
    other = testdev_module.TestDev(lambda line, level: None)
    other.restore(device.save())
    assert vars(other.save()) == vars(device.save())


class Power:
    def __init__(self) -> None:
        self.sci = Line()
        self.sleeps: list[int] = []
        self.pm = AcpiPm(self.sci, self.sleeps.append)


def test_power_off() -> None:
    power = Power()
    assert power.pm.control.read(0, 2) == 1  # ACPI mode is on
    power.pm.control.write(0, 2, 5 << 10)
    assert power.sleeps == []
    assert power.pm.control.read(0, 2) == 5 << 10 | 1
    power.pm.control.write(0, 2, 5 << 10 | 1 << 13)
    assert power.sleeps == [5]
    assert power.pm.control.read(0, 2) & 1 << 13 == 0  # write-only
    power.pm.control.write(1, 1, 0x34)  # bytewise: the high byte alone
    assert power.sleeps == [5, 5]


def test_power_button() -> None:
    power = Power()
    power.pm.press_power_button()
    assert not power.sci.level
    power.pm.event.write(2, 2, 0xFFFF)
    assert power.sci.level
    assert power.pm.event.read(0, 2) == POWER_BUTTON
    assert power.pm.event.read(2, 2) == 0x0721
    power.pm.event.write(0, 2, 0x20)
    assert power.sci.level
    power.pm.event.write(0, 2, POWER_BUTTON)
    assert not power.sci.level
    power.pm.press_power_button()
    assert power.sci.level
    power.pm.event.write(0, 4, 0x20 << 16 | POWER_BUTTON)
    assert not power.sci.level
    assert power.pm.event.read(0, 4) == 0x20 << 16
    power.pm.event.write(3, 1, 1)
    assert power.pm.event.read(2, 2) == 0x120


def test_acpi_state_round_trip() -> None:
    power = Power()
    power.pm.event.write(2, 2, POWER_BUTTON)
    power.pm.press_power_button()
    power.pm.control.write(0, 2, 0x402)
    state = power.pm.save()
    other = Power()
    other.pm.restore(state)
    assert vars(other.pm.save()) == vars(state)
    assert other.sci.level


def test_reset_register() -> None:
    resets: list[None] = []
    port = ResetRegister(lambda: resets.append(None))
    port.write(0, 1, 0x02)
    assert (port.read(0, 1), resets) == (2, [])
    port.write(0, 1, 0x06)
    assert (port.read(0, 1), resets) == (2, [None])
    other = ResetRegister(lambda: None)
    other.restore(port.save())
    assert other.save() == port.save() == 2
