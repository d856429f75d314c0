# SPDX-License-Identifier: GPL-2.0-only
"""An i8042 keyboard controller with nothing plugged in: it passes its self-tests and resets the machine.

Every command that a driver waits on is answered at once, if only with "no device": an unanswered one costs
Linux 10,000 polls. Map it twice: `data` at 0x60 and `command` at 0x64.
"""

from __future__ import annotations

from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Line(Protocol):
        def set(self, level: bool) -> None: ...


_STATUS_OUTPUT_FULL, _STATUS_SYSTEM, _STATUS_UNLOCKED = 0x01, 0x04, 0x10
_CONTROL_KEYBOARD_IRQ = 0x01
_CONTROL_DEFAULT = 0x34  # system flag, keyboard and mouse disabled

_READ_CONTROL, _WRITE_CONTROL = 0x20, 0x60
_TEST_MOUSE, _SELF_TEST, _TEST_KEYBOARD = 0xA9, 0xAA, 0xAB
_DISABLE_MOUSE, _ENABLE_MOUSE, _DISABLE_KEYBOARD, _ENABLE_KEYBOARD = 0xA7, 0xA8, 0xAD, 0xAE
_READ_OUTPUT, _WRITE_OUTPUT, _LOOP_KEYBOARD, _LOOP_MOUSE, _WRITE_MOUSE = 0xD0, 0xD1, 0xD2, 0xD3, 0xD4
_WITH_PARAMETER = frozenset((_WRITE_CONTROL, _WRITE_OUTPUT, _LOOP_KEYBOARD, _LOOP_MOUSE, _WRITE_MOUSE))
_CONTROL_MOUSE_OFF, _CONTROL_KEYBOARD_OFF = 0x20, 0x10

_PASSED, _CLOCK_STUCK, _RESEND = 0x55, 0x01, 0xFE
_OUTPUT_DEFAULT = 0x03  # A20 on, no reset
_NOT_RESET = 0x01
_PULSE_NOTHING = 0xFF


class I8042State(State):
    """`command` waits for its parameter (0: none); `output` is what port 0x60 gives (-1: nothing)."""

    control: int = _CONTROL_DEFAULT
    command: int = 0
    output: int = -1
    last: int = 0


class I8042:
    """`irq` is the keyboard's line; `on_reset` is called when the guest pulls the reset pin."""

    def __init__(self, irq: Line, on_reset: Callable[[], object]) -> None:
        self._irq = irq
        self._on_reset = on_reset
        self._state = I8042State()
        self.data = _Port(self._read_data, self._write_data)
        self.command = _Port(self._read_status, self._write_command)

    def save(self) -> I8042State:
        return self._state.replace()

    def restore(self, state: I8042State) -> None:
        self._state = state.replace()
        self._irq.set(state.output >= 0 and bool(state.control & _CONTROL_KEYBOARD_IRQ))

    def _answer(self, value: int) -> None:
        self._state.output = value
        if self._state.control & _CONTROL_KEYBOARD_IRQ:
            self._irq.set(True)

    def _read_status(self) -> int:
        full = _STATUS_OUTPUT_FULL if self._state.output >= 0 else 0
        return full | _STATUS_SYSTEM | _STATUS_UNLOCKED

    def _read_data(self) -> int:
        state = self._state
        if state.output >= 0:
            state.last, state.output = state.output, -1
            if state.control & _CONTROL_KEYBOARD_IRQ:
                self._irq.set(False)
        return state.last

    def _write_command(self, value: int) -> None:
        state = self._state
        state.command = 0
        if value >= 0xF0:  # pulse the output lines whose bit is 0; line 0 is the reset pin
            if not value & _NOT_RESET:
                self._on_reset()
        elif value in _WITH_PARAMETER:
            state.command = value
        elif value == _READ_CONTROL:
            self._answer(state.control)
        elif value == _SELF_TEST:
            self._answer(_PASSED)
        elif value == _TEST_KEYBOARD:
            self._answer(0)
        elif value == _TEST_MOUSE:
            self._answer(_CLOCK_STUCK)  # that is how a missing mouse port looks
        elif value == _READ_OUTPUT:
            self._answer(_OUTPUT_DEFAULT)
        elif value in (_DISABLE_MOUSE, _ENABLE_MOUSE):
            self._switch(_CONTROL_MOUSE_OFF, value == _DISABLE_MOUSE)
        elif value in (_DISABLE_KEYBOARD, _ENABLE_KEYBOARD):
            self._switch(_CONTROL_KEYBOARD_OFF, value == _DISABLE_KEYBOARD)

    def _switch(self, bit: int, off: bool) -> None:
        control = self._state.control
        self._state.control = control | bit if off else control & ~bit

    def _write_data(self, value: int) -> None:
        state = self._state
        command, state.command = state.command, 0
        if command == _WRITE_CONTROL:
            state.control = value
        elif command == _WRITE_OUTPUT:
            if not value & _NOT_RESET:
                self._on_reset()
        elif command in (_LOOP_KEYBOARD, _LOOP_MOUSE):
            self._answer(value)  # not marked as the mouse's: there is none
        else:
            self._answer(_RESEND)  # a device that does not understand


class _Port:
    """One byte-wide port."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value & 0xFF)
