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


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_given_back_is_zero(shared: bool) -> None:
    memory = GuestMemory([(0, 0x4000)], shared=shared, pluggable=(HIGH, 0x4000))
    assert memory.size == 0x4000
    memory.write(0x1000, b"x" * 0x3000)
    memory.write(HIGH, b"x" * 0x4000)
    memory.give_back(0x2000, 0x1000)
    memory.give_back(HIGH, 0x3000)
    assert memory.read(0x1000, 0x3000) == b"x" * 0x1000 + bytes(0x1000) + b"x" * 0x1000
    assert memory.read(HIGH, 0x4000) == bytes(0x3000) + b"x" * 0x1000
    memory.give_back_view(memory.view(0x1001, 0x2FFF))
    assert memory.read(0x1000, 0x3000) == b"x" * 0x1000 + bytes(0x2000)
    memory.give_back_view(memory.view(0x1001, 0xFFE))  # no whole page
    assert memory.read(0x1000, 1) == b"x"
    assert memory.take(HIGH, 0x4000)
    for gpa, length in ((0x4000, 0x1000), (0x3000, 0x2000), (0x1800, 0x1000), (0, 0x800), (0, 0), (-0x1000, 0x1000)):
        with pytest.raises(GuestFault, match="not whole pages"):
            memory.give_back(gpa, length)


def test_huge_pages_that_are_not_there() -> None:
    """More than any machine has. That they work is tested in a host VM, which has some."""
    with pytest.raises(CannotRun, match=r"67108864 huge pages of 2 MiB are needed.*sysctl vm.nr_hugepages="):
        GuestMemory([(0, 1 << 47)], hugepages=True)
    with pytest.raises(CannotRun, match="not whole huge pages"):
        GuestMemory([(0, 0x1000)], hugepages=True)
