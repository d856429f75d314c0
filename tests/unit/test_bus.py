# SPDX-License-Identifier: GPL-2.0-only
"""The bus: ranges are half open, never overlap, and unclaimed addresses behave as on a PC."""

from __future__ import annotations

import pytest

from unikvm.bus import Bus
from unikvm.errors import UnikvmError


class Register:
    """Remembers its last write; reads give the offset."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_dispatch_by_range() -> None:
    bus = Bus("pio")
    first, second = Register(), Register()
    bus.add(0x10, 8, first)
    bus.add(0x18, 8, second)
    assert bus.read(0x17, 1) == 7
    assert bus.read(0x18, 1) == 0
    bus.write(0x1F, 1, 0xAB)
    assert (first.written, second.written) == ([], [(7, 1, 0xAB)])


@pytest.mark.parametrize("address", [0, 0xF, 0x18, 0xFFFF])
def test_unclaimed(address: int) -> None:
    bus = Bus("pio")
    bus.add(0x10, 8, Register())
    assert bus.read(address, 4) == 0xFFFF_FFFF
    bus.write(address, 4, 1)


@pytest.mark.parametrize(("start", "length"), [(0x10, 8), (0xF, 2), (0x17, 1), (0, 0x100)])
def test_overlap_is_refused(start: int, length: int) -> None:
    bus = Bus("pio")
    bus.add(0x10, 8, Register())
    with pytest.raises(UnikvmError, match="overlaps"):
        bus.add(start, length, Register())


def test_remove() -> None:
    bus = Bus("mmio")
    bus.add(0x10, 8, Register())
    resolved = bus.resolved
    bus.remove(0x10)
    assert bus.find(0x10) is None
    assert bus.resolved is not resolved  # what was found before is forgotten
    with pytest.raises(KeyError):
        bus.remove(0x10)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (-1, 4), (4, -4)])
def test_bad_range(start: int, length: int) -> None:
    with pytest.raises(UnikvmError, match="bad range"):
        Bus("pio").add(start, length, Register())


def test_others_come_and_go_while_one_is_looked_up() -> None:
    """A look-up never misses a device because of another's coming or going."""
    import sys
    import threading

    bus = Bus("mmio")
    bus.add(0x8000, 0x1000, _Constant())
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            bus.add(0x1000, 0x1000, _Constant())
            bus.add(0x4000, 0x1000, _Constant())
            bus.remove(0x1000)
            bus.remove(0x4000)

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        assert all(bus.read(0x8000, 1) == 7 for _ in range(20000))
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


class _Constant:
    def read(self, _offset: int, _size: int) -> int:
        return 7

    def write(self, offset: int, size: int, value: int) -> None: ...
