# SPDX-License-Identifier: GPL-2.0-only
"""NOR flash with the Intel command set (CFI command set 1), as far as firmware uses it for its variables.

Reads cost no exit: the array is memory that the guest cannot write to, so that each write comes here. A command that
makes reads answer something else takes that memory away from the guest until it asks for the array again.
Status starts, and is cleared, to 0, as QEMU's is: OVMF tells flash from ROM by that.
"""

from __future__ import annotations

from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 4096  # what one erase clears

_READ_ARRAY, _READ_ARRAY_TOO = 0xFF, 0xF0
_PROGRAM, _PROGRAM_TOO = 0x10, 0x40
_ERASE, _ERASE_CONFIRM = 0x20, 0xD0
_CLEAR_STATUS, _READ_STATUS = 0x50, 0x70
_READ_ID = 0x90
_READY = 0x80
_SEQUENCE_ERROR = 0x30  # erase and program bits together (Intel 28F, "command sequence error")
_MANUFACTURER, _DEVICE = 0x89, 0x18  # Intel, 128 Mbit; all that tells it apart


class PflashState(State):
    """`command`: what reads answer to (READ_ARRAY: the array). `pending`: the command that waits for its second write,
    or 0. `content`: the array."""

    command: int = _READ_ARRAY
    pending: int = 0
    status: int = 0
    content: bytes = b""


class Pflash:
    """`array` is what the guest reads. `show(visible)`: map it for the guest, or let reads come here. `changed(start,
    end)`: [start, end) of it is new; told once a sequence of commands has ended.

    For one thread at a time.
    """

    def __init__(
        self, array: memoryview, show: Callable[[bool], None], changed: Callable[[int, int], None] = lambda _s, _e: None
    ) -> None:
        self._array = array
        self._show = show
        self._changed = changed
        self._state = PflashState()
        self._dirty: tuple[int, int] | None = None

    def read(self, offset: int, size: int) -> int:
        state = self._state
        if state.command == _READ_ARRAY:
            return int.from_bytes(self._array[offset : offset + size], "little")
        if state.command == _READ_ID:
            return (_MANUFACTURER, _DEVICE)[offset & 1] if offset % BLOCK < 2 else 0
        return state.status

    def write(self, offset: int, size: int, value: int) -> None:
        state = self._state
        if state.pending:
            pending, state.pending = state.pending, 0
            if pending == _PROGRAM:
                self._program(offset, size, value)
            elif value & 0xFF == _ERASE_CONFIRM:
                self._erase(offset)
            else:
                state.status |= _READY | _SEQUENCE_ERROR
            return
        command = value & 0xFF
        if command in (_PROGRAM, _PROGRAM_TOO):
            self._enter(_READ_STATUS, _PROGRAM)
        elif command == _ERASE:
            self._enter(_READ_STATUS, _ERASE)
        elif command == _READ_STATUS:
            self._enter(_READ_STATUS)
        elif command == _READ_ID:
            self._enter(_READ_ID)
        else:
            if command == _CLEAR_STATUS:
                state.status = 0
            self._enter(_READ_ARRAY)  # also for what is not known: the guest then sees that nothing has changed

    def _enter(self, command: int, pending: int = 0) -> None:
        """What reads answer from now on."""
        state = self._state
        was, state.command, state.pending = state.command, command, pending
        if (was == _READ_ARRAY) != (command == _READ_ARRAY):
            self._show(command == _READ_ARRAY)
        if command == _READ_ARRAY and self._dirty is not None:
            dirty, self._dirty = self._dirty, None
            self._changed(*dirty)

    def _program(self, offset: int, size: int, value: int) -> None:
        """Flash can clear bits only; an erase sets them."""
        end = min(offset + size, len(self._array))
        for at in range(offset, end):
            self._array[at] &= value >> 8 * (at - offset) & 0xFF
        self._touch(offset, end)

    def _erase(self, offset: int) -> None:
        start = offset // BLOCK * BLOCK
        end = min(start + BLOCK, len(self._array))
        self._array[start:end] = b"\xff" * (end - start)
        self._touch(start, end)

    def _touch(self, start: int, end: int) -> None:
        self._state.status |= _READY
        before = self._dirty or (start, end)
        self._dirty = min(before[0], start), max(before[1], end)

    def save(self) -> PflashState:
        return self._state.replace(content=bytes(self._array))

    def restore(self, state: PflashState) -> None:
        self._state = state.replace(content=b"")
        self._array[:] = state.content
        self._dirty = (0, len(self._array))  # what keeps it has not seen this
        self._show(state.command == _READ_ARRAY)
