# SPDX-License-Identifier: GPL-2.0-only
"""Register blocks: accesses of every width and alignment."""

from __future__ import annotations

import pytest

from unikvm.regs import Reg, RegisterBlock


class Owner:
    def __init__(self) -> None:
        self.values = [0x1122_3344, 0x55, 0x6677]
        self.log: list[tuple[int, int]] = []

    def write_wide(self, value: int) -> None:
        self.log.append((0, value))

    def write_narrow(self, value: int) -> None:
        self.log.append((1, value))


BLOCK: RegisterBlock[Owner] = RegisterBlock(
    "test",
    16,
    Reg("wide", 0, 4, lambda owner: owner.values[0], Owner.write_wide),
    Reg("narrow", 4, 1, lambda owner: owner.values[1], Owner.write_narrow),
    Reg("fixed", 6, 2, lambda owner: owner.values[2]),
    Reg("blind", 8, 4, None, lambda owner, value: owner.log.append((3, value))),
)


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (0, 4, 0x1122_3344),
        (1, 2, 0x2233),
        (3, 2, 0x5511),
        (4, 4, 0x6677_0055),
        (0, 8, 0x6677_0055_1122_3344),
        (8, 4, 0),
        (14, 4, 0),
        (100, 4, 0),
    ],
)
def test_reads(offset: int, size: int, value: int) -> None:
    assert BLOCK.read(Owner(), offset, size) == value


@pytest.mark.parametrize(
    ("offset", "size", "value", "log"),
    [
        (0, 4, 0xDEAD_BEEF, [(0, 0xDEAD_BEEF)]),
        (0, 2, 0xBEEF, []),
        (2, 4, 0xDEAD_BEEF, [(1, 0xAD)]),
        (0, 8, 0x0102_0304_0506_0708, [(0, 0x0506_0708), (1, 0x04)]),
        (6, 2, 1, []),
        (8, 8, 1 << 32 | 7, [(3, 7)]),
        (100, 4, 1, []),
    ],
)
def test_writes(offset: int, size: int, value: int, log: list[tuple[int, int]]) -> None:
    owner = Owner()
    BLOCK.write(owner, offset, size, value)
    assert owner.log == log


def test_overlapping_declarations() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        RegisterBlock("bad", 8, Reg[Owner]("a", 0, 4), Reg[Owner]("b", 3, 1))


def test_names() -> None:
    register = BLOCK.find(6)
    assert register is not None
    assert repr(register) == "<fixed at 0x6, 2 bytes>"
    assert BLOCK.find(5) is None
