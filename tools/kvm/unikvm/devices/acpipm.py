# SPDX-License-Identifier: GPL-2.0-only
"""ACPI fixed hardware: the PM1a event and control blocks, and the reset register (ACPI 6.4 §4.8.3).

ACPI mode is always on (SCI_EN reads 1, no SMI command port). The guest powers off through PM1a_CNT; the power
button asks it to.
"""

from __future__ import annotations

from unikvm.lean import Lock
from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Line(Protocol):
        def set(self, level: bool) -> None: ...


_STATUS, _ENABLE = 0, 2  # register offsets in the event block
POWER_BUTTON = 1 << 8  # the same bit in status and enable
_EVENTS = 1 << 0 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10  # timer, global lock, power and sleep button, RTC
_WAKE_STATUS = 1 << 15
_SCI_ENABLED = 1 << 0
_BUS_MASTER_RELOAD = 1 << 1
_SLEEP_TYPE_SHIFT = 10
_SLEEP_ENABLE = 1 << 13
_CONTROL_KEPT = _BUS_MASTER_RELOAD | 7 << _SLEEP_TYPE_SHIFT

_RESET_CPU = 1 << 2  # reset control register (port 0xcf9)


class AcpiPmState(State):
    status: int = 0
    enable: int = 0
    control: int = 0


class AcpiPm:
    """Both PM1a blocks: map `event` (4 bytes) and `control` (2 bytes). `on_sleep(type)` gets SLP_TYP.

    Lock order: `_lock` protects the state and the level of the SCI; only `sci` is called with it held.
    """

    def __init__(self, sci: Line, on_sleep: Callable[[int], object]) -> None:
        self._sci = sci
        self._on_sleep = on_sleep
        self._lock = Lock()
        self._level = False
        self._state = AcpiPmState()
        self.event = _EventBlock(self)
        self.control = _ControlBlock(self)

    def press_power_button(self) -> None:
        """Ask the guest to power off, from any thread. Lost when the guest does not listen yet."""
        with self._lock:
            self._state.status |= POWER_BUTTON
            self._update()

    def save(self) -> AcpiPmState:
        with self._lock:
            return self._state.replace()

    def restore(self, state: AcpiPmState) -> None:
        with self._lock:
            self._state = state.replace()
            self._level = not self._pending()
            self._update()

    def read_event(self, offset: int, size: int) -> int:
        state = self._state
        both = state.status | state.enable << 16
        return both >> 8 * offset & (1 << 8 * size) - 1

    def write_event(self, offset: int, size: int, value: int) -> None:
        value = (value & (1 << 8 * size) - 1) << 8 * offset
        with self._lock:
            state = self._state
            if offset < _ENABLE:
                state.status &= ~(value & (_EVENTS | _WAKE_STATUS))  # write 1 to clear
            if offset + size > _ENABLE:
                written = ((1 << 8 * size) - 1 << 8 * offset) >> 16
                state.enable = (state.enable & ~written | value >> 16 & written) & _EVENTS
            self._update()

    def read_control(self, offset: int, size: int) -> int:
        return (self._state.control | _SCI_ENABLED) >> 8 * offset & (1 << 8 * size) - 1

    def write_control(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            mask = (1 << 8 * size) - 1 << 8 * offset
            value = self._state.control & ~mask | value << 8 * offset & mask
            self._state.control = value & _CONTROL_KEPT
        if value & _SLEEP_ENABLE:
            self._on_sleep(value >> _SLEEP_TYPE_SHIFT & 7)

    def _pending(self) -> bool:
        return bool(self._state.status & self._state.enable & _EVENTS)

    def _update(self) -> None:
        level = self._pending()
        if level != self._level:
            self._level = level
            self._sci.set(level)


class _EventBlock:
    """PM1a_EVT: status and enable."""

    def __init__(self, pm: AcpiPm) -> None:
        self.read = pm.read_event
        self.write = pm.write_event


class _ControlBlock:
    """PM1a_CNT."""

    def __init__(self, pm: AcpiPm) -> None:
        self.read = pm.read_control
        self.write = pm.write_control


class ResetRegister:
    """Port 0xcf9 of a machine without PCI configuration ports (with them, `pcihost.ConfigPorts` has it)."""

    def __init__(self, on_reset: Callable[[], object]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        self._value = value & ~_RESET_CPU & 0xFF
        if value & _RESET_CPU:
            self._on_reset()

    def save(self) -> int:
        return self._value

    def restore(self, state: int) -> None:
        self._value = state
