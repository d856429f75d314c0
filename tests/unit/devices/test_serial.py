# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from unikvm.devices.serial import BACKLOG, Serial

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
RDA, THRE, MODEM = 1, 2, 8


class Line:
    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        self.level = level
        self.changes.append(level)


class Rig:
    def __init__(self) -> None:
        self.line = Line()
        self.sent = bytearray()
        self.rooms = 0
        self.uart = Serial(self.line, self.sent.extend, self.room)

    def room(self) -> None:
        self.rooms += 1

    def read(self, register: int) -> int:
        return self.uart.read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def drain(self) -> bytes:
        out = bytearray()
        while self.read(LSR) & 1:
            out.append(self.read(DATA))
        return bytes(out)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_bytes_go_out_at_once(rig: Rig) -> None:
    for byte in b"hello":
        assert rig.read(LSR) == 0x60
        rig.write(DATA, byte)
    assert rig.sent == b"hello"
    assert rig.line.changes == []


def test_autodetection_as_linux_does_it(rig: Rig) -> None:
    """drivers/tty/serial/8250/8250_port.c, autoconfig(): a 16550A and nothing better."""
    rig.write(IER, 0)
    assert rig.read(IER) & 0x0F == 0
    rig.write(IER, 0x0F)
    assert rig.read(IER) & 0x0F == 0x0F
    rig.write(IER, 0)
    rig.write(MCR, 0x1A)  # loopback, OUT2, RTS
    assert rig.read(MSR) & 0xF0 == 0x90
    rig.write(MCR, 0)
    rig.write(IIR, 1)
    assert rig.read(IIR) >> 6 == 3
    rig.write(LCR, 0x80)
    rig.write(IIR, 0x21)  # the 64-byte FIFO of a 16750
    assert rig.read(IIR) >> 5 == 6
    rig.write(LCR, 0)
    rig.write(IER, 0x40)  # the XScale's enable bit
    assert rig.read(IER) == 0
    rig.write(SCR, 0xA5)
    assert rig.read(SCR) == 0xA5


def test_divisor_latch(rig: Rig) -> None:
    rig.write(LCR, 0x83)
    rig.write(DATA, 0x34)
    rig.write(IER, 0x12)
    assert (rig.read(DATA), rig.read(IER)) == (0x34, 0x12)
    rig.write(LCR, 0x03)
    assert rig.read(IER) == 0
    assert rig.sent == b""


def test_transmitter_interrupt(rig: Rig) -> None:
    rig.write(IER, THRE)
    assert rig.line.level
    assert rig.read(IIR) == 0x02
    assert not rig.line.level
    assert rig.read(IIR) == 0x01
    rig.write(DATA, ord("x"))
    assert rig.line.level
    rig.write(IER, 0)
    assert not rig.line.level


def test_receive_interrupt_and_trigger(rig: Rig) -> None:
    rig.write(IIR, 0x81)  # FIFO, trigger at 8
    rig.write(IER, RDA)
    assert rig.uart.receive(b"abc") == 3
    assert rig.line.level
    assert rig.read(IIR) == 0xCC  # fewer than the trigger: time-out
    rig.uart.receive(b"defgh")
    assert rig.read(IIR) == 0xC4
    assert rig.drain() == b"abcdefgh"
    assert not rig.line.level
    assert rig.line.changes == [True, False]


@pytest.mark.parametrize("fifo", [0, 1])
def test_flow_control(rig: Rig, fifo: int) -> None:
    rig.write(IIR, fifo)
    data = bytes(range(256)) * 20
    taken = rig.uart.receive(data)
    assert taken in (BACKLOG, BACKLOG + 16, BACKLOG + 1)
    assert rig.uart.receive(b"x" * 100) < 100
    assert rig.rooms == 0
    got = rig.drain()
    assert got[:taken] == data[:taken]
    assert rig.rooms == 1
    assert rig.uart.receive(data[:4096]) == 4096


def test_loopback_keeps_the_bytes_inside(rig: Rig) -> None:
    rig.write(MCR, 0x10)
    rig.uart.receive(b"outside")
    rig.write(DATA, ord("i"))
    rig.write(DATA, ord("j"))  # no FIFO: overrun
    assert rig.read(LSR) == 0x63
    assert rig.read(LSR) == 0x61
    assert rig.read(DATA) == ord("i")
    assert rig.sent == b""
    rig.write(MCR, 0)
    assert rig.drain() == b"outside"


def test_modem_status(rig: Rig) -> None:
    assert rig.read(MSR) == 0xB0
    rig.write(IER, MODEM)
    rig.write(MCR, 0x10)
    assert rig.line.level
    assert rig.read(IIR) == 0x00
    assert rig.read(MSR) == 0x0B  # CTS, DSR and DCD gone, and changed
    assert not rig.line.level
    assert rig.read(MSR) == 0x00


def test_clearing_the_receive_fifo(rig: Rig) -> None:
    rig.write(IIR, 1)
    rig.write(IER, RDA)
    rig.uart.receive(b"abc")
    rig.write(IIR, 3)
    assert rig.read(LSR) & 1 == 0
    assert not rig.line.level


def test_state_round_trip(rig: Rig) -> None:
    rig.write(IIR, 0x41)
    rig.write(LCR, 0x1B)
    rig.write(SCR, 7)
    rig.write(IER, RDA)
    rig.uart.receive(b"0123456789abcdefXYZ")
    state = rig.uart.save()
    other = Rig()
    other.uart.restore(state)
    assert vars(other.uart.save()) == vars(state)
    assert other.line.level
    assert other.drain() == rig.drain() == b"0123456789abcdefXYZ"
    assert vars(state)["backlog"] == b"XYZ"  # a copy, not a view
