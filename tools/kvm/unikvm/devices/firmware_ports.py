# SPDX-License-Identifier: GPL-2.0-only
"""Small devices that PC firmware expects: system control port A (0x92), the ACPI PM timer, QEMU's debug console."""

from __future__ import annotations

import time

from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FAST_RESET, _A20 = 1 << 0, 1 << 1
PM_TIMER_HZ = 3_579_545  # ACPI 6.4 §4.8.2.1
_PM_TIMER_MASK = 0xFF_FFFF
_NS = 1_000_000_000
DEBUG_PRESENT = 0xE9  # what firmware reads at the debug console's port before it prints there
_LINE_LIMIT = 1000


class SystemControl:
    """Port 0x92: the gate of address line 20, which is always open here, and a fast reset."""

    def __init__(self, on_reset: Callable[[], object]) -> None:
        self._on_reset = on_reset
        self._value = _A20

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        self._value = value & 0xFE | _A20
        if value & _FAST_RESET:
            self._on_reset()

    def save(self) -> int:
        return self._value

    def restore(self, state: int) -> None:
        self._value = state


class PmTimerState(State):
    ticks: int = 0


class PmTimer:
    """A counter of 24 bits that OVMF measures time with. `now`: nanoseconds of a clock that only goes forward."""

    def __init__(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._offset = 0  # in ticks

    def read(self, offset: int, size: int) -> int:
        ticks = self._now() * PM_TIMER_HZ // _NS + self._offset
        return (ticks & _PM_TIMER_MASK) >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """It is read-only."""

    def save(self) -> PmTimerState:
        return PmTimerState(self.read(0, 4))

    def restore(self, state: PmTimerState) -> None:
        self._offset = 0
        self._offset = state.ticks - self.read(0, 4)


class DebugConsole:
    """Port 0x402: `say` gets what firmware tells its developers, a line at a time."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._line = bytearray()

    def read(self, offset: int, size: int) -> int:
        return DEBUG_PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        if value & 0xFF != 0x0A:
            self._line.append(value & 0xFF)
            if len(self._line) < _LINE_LIMIT:
                return
        text = self._line.decode("latin-1").rstrip()
        self._line.clear()
        self._say("".join(c if c.isprintable() else "." for c in text))

    def save(self) -> bytes:
        """The line that has no end yet."""
        return bytes(self._line)

    def restore(self, state: bytes) -> None:
        self._line[:] = state
