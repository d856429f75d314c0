# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory: the door check, and RAM on both sides of the PCI hole."""

from __future__ import annotations

import os

import pytest

from unikvm.errors import CannotRun, GuestFault
from unikvm.memory import GuestMemory

HIGH = 1 << 32


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([(0, 0x4000), (HIGH, 0x2000)], shared=True)


def test_regions(memory: GuestMemory) -> None:
    low, high = memory.regions
    assert (low.gpa, low.size) == (0, 0x4000)
    assert (high.gpa, high.size, high.offset - low.offset) == (HIGH, 0x2000, 0x4000)
    assert high.hva - low.hva == 0x4000


def test_views_share_the_ram(memory: GuestMemory) -> None:
    memory.write(HIGH + 0x10, b"hello")
    assert memory.read(HIGH + 0x10, 5) == b"hello"
    memory.view(HIGH + 0x10, 1)[0] = ord("j")
    assert os.pread(memory.fd, 5, memory.regions[1].offset + 0x10) == b"jello"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0x4000, 1), (0x3FFF, 2), (-1, 1), (0, -1), (HIGH - 1, 2), (HIGH + 0x2000, 1), ((1 << 64) - 1, 2), (0, 1 << 64)],
)
def test_outside_is_a_guest_fault(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(GuestFault, match="not RAM"):
        memory.view(gpa, length)


def test_edges_are_inside(memory: GuestMemory) -> None:
    assert len(memory.view(0, 0x4000)) == 0x4000
    assert len(memory.view(HIGH, 0x2000)) == 0x2000
    assert len(memory.view(0x3FFF, 1)) == 1


def test_read_from_a_file(memory: GuestMemory) -> None:
    fd = os.memfd_create("file")
    os.write(fd, b"0123456789")
    memory.readinto_from(fd, 2, 0x100, 5)
    assert memory.read(0x100, 6) == b"23456\0"
    with pytest.raises(CannotRun, match="truncated"):
        memory.readinto_from(fd, 2, 0x100, 9)
    os.close(fd)


def test_too_much_memory_is_one_clear_error() -> None:
    with pytest.raises(CannotRun, match="cannot map"):
        GuestMemory([(0, 1 << 62)])
