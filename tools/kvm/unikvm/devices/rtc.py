# SPDX-License-Identifier: GPL-2.0-only
"""The CMOS clock (Motorola MC146818A) with the PC's configuration bytes, at an index and a data port.

Time is UTC, computed when it is read: there is no update cycle, so UIP is never set and nobody polls for its
end. Reading the seconds (or register A) latches all time registers, so a date that is read in one go is
consistent. Alarm and update interrupts work; the periodic one does not (Linux emulates it).
"""

from __future__ import annotations

import time

from unikvm.lean import Lock
from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    Schedule = Callable[[float, Callable[[], None]], object]

    class Line(Protocol):
        def set(self, level: bool) -> None: ...


_SECONDS, _SECONDS_ALARM, _MINUTES, _MINUTES_ALARM, _HOURS, _HOURS_ALARM = range(6)
_WEEKDAY, _DAY, _MONTH, _YEAR = 6, 7, 8, 9
_A, _B, _C, _D = 0xA, 0xB, 0xC, 0xD
_CENTURY = 0x32
_TIME_REGISTERS = frozenset((_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY))

_A_DEFAULT = 0x26  # 32 kHz crystal, 1024 Hz
_B_SET, _B_ALARM, _B_UPDATE, _B_BINARY, _B_24H = 0x80, 0x20, 0x10, 0x04, 0x02
_C_IRQ, _C_ALARM, _C_UPDATE = 0x80, 0x20, 0x10
_D_VALID = 0x80
_ANY = 0xC0  # an alarm field from here up matches always
_PM = 0x80
_LATCH_SECONDS = 0.5  # other time registers come from a latch up to this old

_MIB = 1 << 20
_DAY_SECONDS = 86400


class RtcState(State):
    """`offset`: seconds that the guest's clock is ahead of the host's."""

    index: int = 0
    offset: float = 0.0
    cmos: bytes = bytes(128)


class Rtc:
    """`low_memory`, `high_memory`: bytes of RAM below and above 4 GiB. `schedule(seconds, callback)` calls
    back once, from any thread; without it there are no alarms. `now`: seconds since the epoch.

    Lock order: `_lock` protects everything here; only `irq` and `schedule` are called with it held.
    """

    def __init__(
        self,
        irq: Line,
        *,
        low_memory: int = 0,
        high_memory: int = 0,
        cpus: int = 1,
        schedule: Schedule | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._irq = irq
        self._schedule = schedule
        self._now = now
        self._lock = Lock()
        self._index = 0
        self._offset = 0.0
        self._latched_at = 0.0
        self._generation = 0
        self._cmos = bytearray(128)
        self._cmos[_A] = _A_DEFAULT
        self._cmos[_B] = _B_24H
        self._cmos[_D] = _D_VALID
        self._describe_memory(low_memory, high_memory)
        self._cmos[0x5F] = cpus - 1

    def _describe_memory(self, low: int, high: int) -> None:
        """Where PC firmware finds the memory size: KiB below 640K, KiB above 1M, 64 KiB above 16M and above
        4G."""
        extended = min(max(low - _MIB, 0) >> 10, 0xFFFF)
        above_16m = min(max(low - 16 * _MIB, 0) >> 16, 0xFFFF)
        for index, value, size in (
            (0x15, min(low >> 10, 640), 2),
            (0x17, extended, 2),
            (0x30, extended, 2),
            (0x34, above_16m, 2),
            (0x5B, min(high >> 16, 0xFF_FFFF), 3),
        ):
            self._cmos[index : index + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return 0xFF  # the index is write-only
        with self._lock:
            index = self._index
            if index == _C:
                value = self._cmos[_C]
                self._cmos[_C] = 0
                if value & _C_IRQ:
                    self._irq.set(False)
                return value
            if index in _TIME_REGISTERS or index == _A:
                now = self._now()
                if index in (_SECONDS, _A) or not 0 <= now - self._latched_at < _LATCH_SECONDS:
                    self._latch(now)
            return self._cmos[index]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks NMI
            return
        value &= 0xFF
        with self._lock:
            index = self._index
            if index in _TIME_REGISTERS:
                self._latch(self._now())
                self._cmos[index] = value
                if not self._cmos[_B] & _B_SET:
                    self._adopt()
            elif index == _A:
                self._cmos[_A] = value & 0x7F
            elif index == _B:
                self._set_control(value)
            elif index not in (_C, _D):
                self._cmos[index] = value
            if index <= _B:
                self._arm()

    def save(self) -> RtcState:
        with self._lock:
            return RtcState(self._index, self._offset, bytes(self._cmos))

    def restore(self, state: RtcState) -> None:
        with self._lock:
            self._index, self._offset = state.index, state.offset
            self._cmos[:] = state.cmos
            self._latched_at = 0.0
            self._irq.set(bool(self._cmos[_C] & _C_IRQ))
            self._arm()

    def _set_control(self, value: int) -> None:
        """Register B. SET stops the clock while the guest writes a new time."""
        if value & _B_SET:
            self._latch(self._now())
        was_set = self._cmos[_B] & _B_SET
        self._cmos[_B] = value
        if was_set and not value & _B_SET:
            self._adopt()
        self._latched_at = 0.0  # the format may have changed

    def _encode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else (value >> 4) * 10 + (value & 0xF)

    def _latch(self, now: float) -> None:
        """Bring the time registers up to date, unless SET has stopped them."""
        if self._cmos[_B] & _B_SET:
            return
        self._latched_at = now
        t = time.gmtime(now + self._offset)
        cmos, encode = self._cmos, self._encode
        if cmos[_B] & _B_24H:
            cmos[_HOURS] = encode(t.tm_hour)
        else:
            cmos[_HOURS] = encode((t.tm_hour + 11) % 12 + 1) | (_PM if t.tm_hour >= 12 else 0)
        cmos[_SECONDS] = encode(min(t.tm_sec, 59))
        cmos[_MINUTES] = encode(t.tm_min)
        cmos[_WEEKDAY] = encode((t.tm_wday + 1) % 7 + 1)  # 1 is Sunday
        cmos[_DAY] = encode(t.tm_mday)
        cmos[_MONTH] = encode(t.tm_mon)
        cmos[_YEAR] = encode(t.tm_year % 100)
        cmos[_CENTURY] = encode(t.tm_year // 100 % 100)

    def _hour(self, value: int) -> int:
        if self._cmos[_B] & _B_24H:
            return self._decode(value)
        return self._decode(value & ~_PM) % 12 + (12 if value & _PM else 0)

    def _adopt(self) -> None:
        """Make what is in the time registers the time. A date that does not exist changes nothing."""
        from calendar import monthrange, timegm

        cmos, decode = self._cmos, self._decode
        year = decode(cmos[_CENTURY]) * 100 + decode(cmos[_YEAR])
        month, day, hour = decode(cmos[_MONTH]), decode(cmos[_DAY]), self._hour(cmos[_HOURS])
        minute, second = decode(cmos[_MINUTES]), decode(cmos[_SECONDS])
        if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]):
            return
        if hour < 24 and minute < 60 and second < 60:
            self._offset = timegm((year, month, day, hour, minute, second)) - self._now()
            self._latched_at = 0.0

    def _next_alarm(self, second: int) -> int | None:
        """The first time after `second` (since the epoch) that the alarm registers match."""
        want_hour, want_minute, want_second = (
            None if value >= _ANY else decode(value)
            for value, decode in (
                (self._cmos[_HOURS_ALARM], self._hour),
                (self._cmos[_MINUTES_ALARM], self._decode),
                (self._cmos[_SECONDS_ALARM], self._decode),
            )
        )
        t = second + 1
        while t <= second + _DAY_SECONDS:
            if want_hour is not None and t // 3600 % 24 != want_hour:
                t += 3600 - t % 3600
            elif want_minute is not None and t // 60 % 60 != want_minute:
                t += 60 - t % 60
            elif want_second is not None and t % 60 != want_second:
                t += 1
            else:
                return t
        return None

    def _arm(self) -> None:
        """Schedule the next interrupt that register B asks for; what was scheduled before is void."""
        self._generation += 1
        control = self._cmos[_B]
        if self._schedule is None or control & _B_SET or not control & (_B_ALARM | _B_UPDATE):
            return
        now = self._now() + self._offset
        alarm = self._next_alarm(int(now)) if control & _B_ALARM else None
        at = int(now) + 1 if control & _B_UPDATE else alarm
        if at is not None:
            causes = (_C_UPDATE if control & _B_UPDATE else 0) | (_C_ALARM if at == alarm else 0)
            generation = self._generation
            self._schedule(max(at - now, 0.0), lambda: self._fire(generation, causes))

    def _fire(self, generation: int, causes: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            self._cmos[_C] |= _C_IRQ | causes
            self._irq.set(True)
            self._arm()
