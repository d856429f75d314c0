# SPDX-License-Identifier: GPL-2.0-only
"""A 16550A UART (National Semiconductor PC16550D), without the time that a line takes: bytes go out at once.

Coalescing its port writes in KVM is no gain: Linux reads the line status before each byte, and an
interrupt-driven write would wait for an interrupt that nobody raises until the next exit.
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


# Register offsets
_DATA = 0  # RBR, THR; divisor low with DLAB
_IER = 1  # divisor high with DLAB
_IIR_FCR = 2
_LCR = 3
_MCR = 4
_LSR = 5
_MSR = 6
_SCR = 7

_IER_RDA, _IER_THRE, _IER_LINE, _IER_MODEM = 0x01, 0x02, 0x04, 0x08
_IIR_NONE, _IIR_THRE, _IIR_RDA, _IIR_LINE, _IIR_TIMEOUT, _IIR_MODEM = 0x01, 0x02, 0x04, 0x06, 0x0C, 0x00
_IIR_FIFO_ON = 0xC0
_FCR_ENABLE, _FCR_CLEAR_RX, _FCR_CLEAR_TX, _FCR_KEPT = 0x01, 0x02, 0x04, 0xC9
_LCR_DLAB = 0x80
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
_LSR_DR, _LSR_OE, _LSR_THRE, _LSR_TEMT = 0x01, 0x02, 0x20, 0x40
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MSR_CONNECTED = _MSR_CTS | _MSR_DSR | _MSR_DCD

_TRIGGERS = (1, 4, 8, 14)
_FIFO_SIZE = 16
BACKLOG = 4096  # bytes that wait for room in the guest's FIFO


class SerialState(State):
    """All that a guest can tell. `fifo` is what it can read now, `backlog` what follows."""

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    msr_delta: int = 0
    msr_lines: int = _MSR_CONNECTED
    scratch: int = 0
    divisor: int = 12  # 9600 baud
    overrun: bool = False
    thre_pending: bool = False
    fifo: bytes = b""
    backlog: bytes = b""


class Serial:
    """`output` gets what the guest sends. `on_room` is called (on a vCPU's thread) when a full backlog has
    emptied.

    Lock order: `_lock` protects the state and the interrupt's level; nothing but `irq` is called with it
    held.
    """

    def __init__(
        self, irq: Line, output: Callable[[bytes], object], on_room: Callable[[], object] | None = None
    ) -> None:
        self._irq = irq
        self._output = output
        self._on_room = on_room
        self._lock = Lock()
        self._level = False
        self._state = SerialState()

    def receive(self, data: bytes) -> int:
        """Send `data` to the guest, from any thread. Returns how many bytes were taken; offer the rest again
        after `on_room`."""
        with self._lock:
            state = self._state
            taken = min(len(data), BACKLOG - len(state.backlog))
            state.backlog += bytes(data[:taken])
            self._refill()
            self._update()
        return taken

    def read(self, offset: int, size: int) -> int:
        if offset == _LSR:  # what Linux polls: no lock, each of these is one word
            status = _LSR_THRE | _LSR_TEMT
            if self._state.fifo:
                status |= _LSR_DR
            if self._state.overrun:
                status |= _LSR_OE
                self._state.overrun = False
            return status
        room = False
        with self._lock:
            state = self._state
            if offset == _DATA and not state.lcr & _LCR_DLAB:
                value, room = self._take()
            else:
                value = self._read_register(offset)
        if room and self._on_room is not None:
            self._on_room()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        with self._lock:
            state = self._state
            if offset == _DATA and not state.lcr & _LCR_DLAB:
                state.thre_pending = True
                if not state.mcr & _MCR_LOOP:
                    sent = bytes((value,))
                else:
                    sent = b""
                    self._loop_back(value)
                if state.ier:
                    self._update()
            else:
                sent = b""
                self._write_register(offset, value)
                self._update()
        if sent:
            self._output(sent)

    def save(self) -> SerialState:
        """A copy of the state, for a snapshot."""
        with self._lock:
            return self._state.replace()

    def restore(self, state: SerialState) -> None:
        """Take over `state` and drive the interrupt line accordingly."""
        with self._lock:
            self._state = state.replace()
            self._level = not self._interrupting()
            self._update()

    def _read_register(self, offset: int) -> int:
        state = self._state
        if offset == _DATA:
            return state.divisor & 0xFF
        if offset == _IER:
            return state.divisor >> 8 if state.lcr & _LCR_DLAB else state.ier
        if offset == _IIR_FCR:
            cause = self._cause()
            if cause == _IIR_THRE:
                state.thre_pending = False
                self._update()
            return cause | (_IIR_FIFO_ON if state.fcr & _FCR_ENABLE else 0)
        if offset == _LCR:
            return state.lcr
        if offset == _MCR:
            return state.mcr
        if offset == _MSR:
            value = state.msr_lines | state.msr_delta
            state.msr_delta = 0
            self._update()
            return value
        return state.scratch

    def _write_register(self, offset: int, value: int) -> None:
        state = self._state
        if offset == _DATA:
            state.divisor = state.divisor & 0xFF00 | value
        elif offset == _IER:
            if state.lcr & _LCR_DLAB:
                state.divisor = state.divisor & 0xFF | value << 8
                return
            # The transmitter is always empty, so enabling its interrupt raises it.
            if value & _IER_THRE and not state.ier & _IER_THRE:
                state.thre_pending = True
            state.ier = value & 0x0F
        elif offset == _IIR_FCR:
            if value & _FCR_CLEAR_RX or (value ^ state.fcr) & _FCR_ENABLE:
                state.fifo = b""
                self._refill()
            state.fcr = value & _FCR_KEPT if value & _FCR_ENABLE else 0
            if value & _FCR_CLEAR_TX:
                state.thre_pending = True
        elif offset == _LCR:
            state.lcr = value
        elif offset == _MCR:
            state.mcr = value & 0x1F
            self._follow_lines()
            self._refill()
        elif offset == _SCR:
            state.scratch = value

    def _follow_lines(self) -> None:
        """In loopback the modem outputs are its inputs (PC16550D §8.6.7); otherwise a terminal is
        connected."""
        state = self._state
        lines = _MSR_CONNECTED
        if state.mcr & _MCR_LOOP:
            pairs = (
                (_MCR_RTS, _MSR_CTS),
                (_MCR_DTR, _MSR_DSR),
                (_MCR_OUT1, _MSR_RI),
                (_MCR_OUT2, _MSR_DCD),
            )
            lines = sum(line for control, line in pairs if state.mcr & control)
        changed = lines ^ state.msr_lines
        trailing_ring = changed & state.msr_lines & _MSR_RI  # RI counts its end only
        state.msr_delta |= (changed & ~_MSR_RI | trailing_ring) >> 4
        state.msr_lines = lines

    def _capacity(self) -> int:
        return _FIFO_SIZE if self._state.fcr & _FCR_ENABLE else 1

    def _loop_back(self, value: int) -> None:
        state = self._state
        if len(state.fifo) < self._capacity():
            state.fifo += bytes((value,))
        else:
            state.overrun = True

    def _refill(self) -> None:
        """Move what fits from the backlog to the FIFO. Not in loopback: the input is disconnected."""
        state = self._state
        if state.backlog and not state.mcr & _MCR_LOOP:
            room = self._capacity() - len(state.fifo)
            state.fifo += state.backlog[:room]
            state.backlog = state.backlog[room:]

    def _take(self) -> tuple[int, bool]:
        """The next byte for the guest, and whether a full backlog has just emptied."""
        state = self._state
        if not state.fifo:
            self._refill()
        if not state.fifo:
            return 0, False
        value = state.fifo[0]
        state.fifo = state.fifo[1:]
        had = bool(state.backlog)
        if not state.fifo:
            self._refill()
        self._update()
        return value, had and not state.backlog

    def _cause(self) -> int:
        """The interrupt identification, by priority (PC16550D §8.6.5). No line-status interrupt: there are no
        errors but an overrun in loopback, which is polled for."""
        state = self._state
        if state.ier & _IER_RDA and state.fifo:
            enough = not state.fcr & _FCR_ENABLE or len(state.fifo) >= _TRIGGERS[state.fcr >> 6]
            return _IIR_RDA if enough else _IIR_TIMEOUT
        if state.ier & _IER_THRE and state.thre_pending:
            return _IIR_THRE
        if state.ier & _IER_MODEM and state.msr_delta:
            return _IIR_MODEM
        return _IIR_NONE

    def _interrupting(self) -> bool:
        return self._cause() != _IIR_NONE

    def _update(self) -> None:
        """Drive the line when its level changes: each change is an ioctl."""
        level = self._interrupting()
        if level != self._level:
            self._level = level
            self._irq.set(level)
