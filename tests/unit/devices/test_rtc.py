# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from calendar import timegm
from collections.abc import Callable

import pytest

from unikvm.devices.rtc import Rtc

NOON = timegm((2031, 12, 31, 12, 34, 56))  # a Wednesday
GIB = 1 << 30


class Line:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


class Rig:
    def __init__(self, now: float = NOON, **options: int) -> None:
        self.time = now
        self.line = Line()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.rtc = Rtc(
            self.line,
            schedule=lambda seconds, call: self.timers.append((self.time + seconds, call)),
            now=lambda: self.time,
            **options,
        )

    def __getitem__(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.time = first[0]
            first[1]()
        self.time = end

    def date(self) -> tuple[int, ...]:
        return tuple(self[i] for i in (0, 2, 4, 6, 7, 8, 9, 0x32))


def test_time_in_bcd() -> None:
    assert Rig().date() == (0x56, 0x34, 0x12, 0x04, 0x31, 0x12, 0x31, 0x20)


def test_time_in_binary_and_12_hours() -> None:
    rig = Rig()
    rig[0xB] = 0x06
    assert rig.date() == (56, 34, 12, 4, 31, 12, 31, 20)
    rig[0xB] = 0x00
    assert rig[4] == 0x92  # 12 PM
    rig.time -= 12 * 3600
    assert (rig[0], rig[4]) == (0x56, 0x12)  # 12 AM


def test_never_busy_and_always_valid() -> None:
    rig = Rig()
    assert rig[0xA] & 0x80 == 0
    rig[0xA] = 0xFF
    assert rig[0xA] == 0x7F
    assert rig[0xD] == 0x80
    assert rig.rtc.read(0, 1) == 0xFF


def test_a_date_read_in_one_go_is_consistent() -> None:
    rig = Rig(timegm((2031, 12, 31, 23, 59, 59)))
    assert rig[0] == 0x59
    rig.time += 0.1
    assert rig[9] == 0x31
    rig.time += 0.35  # the next second begins after a while, within the latch's life
    assert (rig[2], rig[4], rig[9]) == (0x59, 0x23, 0x31)
    rig.time += 1
    assert (rig[9], rig[2]) == (0x32, 0x00)


def test_setting_the_time() -> None:
    rig = Rig()
    rig[0xB] = 0x82
    for index, value in ((0, 0x10), (2, 0x20), (4, 0x03), (7, 0x29), (8, 0x02), (9, 0x28), (0x32, 0x20)):
        rig[index] = value
    rig.time += 100
    assert rig[0] == 0x10  # stopped
    rig[0xB] = 0x02
    rig.time += 5
    assert rig.date() == (0x15, 0x20, 0x03, 0x03, 0x29, 0x02, 0x28, 0x20)


def test_a_date_that_does_not_exist_changes_nothing() -> None:
    rig = Rig()
    rig[0xB] = 0x82
    rig[8] = 0x02
    rig[7] = 0x31
    rig[0xB] = 0x02
    assert rig.date() == (0x56, 0x34, 0x12, 0x04, 0x31, 0x12, 0x31, 0x20)


def test_setting_one_register_while_it_runs() -> None:
    rig = Rig()
    rig[2] = 0x00
    assert rig.date()[:3] == (0x56, 0x00, 0x12)


def test_alarm() -> None:
    rig = Rig()
    rig[1], rig[3], rig[5] = 0x00, 0x35, 0x12
    rig[0xB] = 0x22
    rig.advance(3.5)
    assert not rig.line.level
    rig.advance(1)
    assert rig.line.level
    assert rig[0xC] == 0xA0
    assert not rig.line.level
    assert rig[0xC] == 0
    rig.advance(86390)
    assert not rig.line.level
    rig.advance(20)
    assert rig.line.level


def test_alarm_every_hour_and_never() -> None:
    rig = Rig()
    rig[1], rig[3], rig[5] = 0x00, 0x00, 0xFF
    rig[0xB] = 0x22
    rig.advance(25 * 60 + 5)
    assert rig.line.level
    rig = Rig()
    rig[1] = 0x75  # there is no such second
    rig[0xB] = 0x22
    assert rig.timers == []


def test_update_interrupt_each_second() -> None:
    rig = Rig(NOON + 0.25)
    rig[0xB] = 0x12
    rig.advance(0.8)
    assert rig.line.level
    assert rig[0xC] == 0x90
    rig.advance(1)
    assert rig.line.level
    rig[0xC]
    rig[0xB] = 0x02
    rig.advance(5)
    assert not rig.line.level


@pytest.mark.parametrize(
    ("low", "high", "base", "extended", "above_16m", "above_4g"),
    [
        (1 << 20, 0, 640, 0, 0, 0),
        (64 << 20, 0, 640, 63 * 1024, 48 * 16, 0),
        (3 * GIB, 2 * GIB, 640, 0xFFFF, 3 * 16384 - 256, 2 * 16384),
    ],
)
def test_memory_sizes(low: int, high: int, base: int, extended: int, above_16m: int, above_4g: int) -> None:
    rig = Rig(low_memory=low, high_memory=high, cpus=4)
    words = [rig[index] | rig[index + 1] << 8 for index in (0x15, 0x17, 0x30, 0x34, 0x5B)]
    assert words[:4] == [base, extended, extended, above_16m]
    assert words[4] | rig[0x5D] << 16 == above_4g
    assert rig[0x5F] == 3


def test_plain_bytes_are_kept() -> None:
    rig = Rig()
    rig[0x0F] = 0x0A
    rig[0xC] = 0xFF
    assert rig[0x0F] == 0x0A
    assert rig[0xC] == 0


def test_state_round_trip() -> None:
    rig = Rig()
    rig[2] = 0x00
    rig[0x0F] = 5
    rig[0xB] = 0x12
    rig.advance(1.5)
    assert rig.line.level
    state = rig.rtc.save()
    other = Rig(rig.time)
    other.rtc.restore(state)
    assert vars(other.rtc.save()) == vars(state)
    assert other.line.level
    assert other.date() == rig.date()
    other[0xC]
    other.advance(1)
    assert other.line.level
