# SPDX-License-Identifier: GPL-2.0-only
"""The registers behind _STA, _EJ0 and _OST, as the guest's methods use them; and as a hostile guest does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unikvm.devices.plug import CpuPlug, PciPlug, PlugLine

SELECTOR, FLAGS, COMMAND, DATA = 0, 4, 5, 8
ENABLED, INSERTING, REMOVING, EJECT = 1, 2, 4, 8


class Line:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)

    @property
    def high(self) -> bool:
        return bool(self.levels and self.levels[-1])


class Bench:
    def __init__(self, cpus: int = 4, there: int = 2) -> None:
        self.line = Line()
        shared = PlugLine(self.line)
        self.ejected: list[int] = []
        self.words: list[tuple[int, int, int]] = []
        self.slots: list[int] = []
        enabled = tuple(index < there for index in range(cpus))
        self.cpus = CpuPlug(shared, enabled, self.ejected.append, lambda *word: self.words.append(word))
        self.pci = PciPlug(shared, self.slots.append)

    def status(self, cpu: int) -> int:
        self.cpus.write(SELECTOR, 4, cpu)
        return self.cpus.read(FLAGS, 1)

    def scan(self) -> list[tuple[int, int]]:
        """CSCN."""
        told: list[tuple[int, int]] = []
        while True:
            self.cpus.write(COMMAND, 1, 0)
            flags = self.cpus.read(FLAGS, 1)
            event = flags & INSERTING or flags & REMOVING
            if not event:
                return told
            told.append((self.cpus.read(DATA, 4), event))
            self.cpus.write(FLAGS, 1, event)


def test_cpus_come_and_go() -> None:
    bench = Bench()
    assert [bench.status(cpu) for cpu in range(4)] == [ENABLED, ENABLED, 0, 0]
    assert not bench.line.levels
    bench.cpus.insert(2)
    bench.cpus.insert(3)
    assert bench.line.high
    assert sorted(bench.scan()) == [(2, INSERTING), (3, INSERTING)]
    assert bench.line.levels == [True, False]
    assert bench.status(3) == ENABLED
    bench.cpus.ask(3)
    assert bench.scan() == [(3, REMOVING)]
    bench.cpus.write(SELECTOR, 4, 3)
    bench.cpus.write(FLAGS, 1, EJECT)
    assert bench.ejected == [3]
    assert bench.cpus.enabled == (True, True, True, False)


def test_a_request_that_is_taken_back() -> None:
    bench = Bench()
    bench.cpus.ask(1)
    bench.cpus.forget(1)
    assert not bench.line.high
    assert bench.scan() == []


def test_the_guests_word() -> None:
    bench = Bench()
    bench.cpus.write(SELECTOR, 4, 1)
    for command, value in ((1, 0x103), (2, 0x82)):
        bench.cpus.write(COMMAND, 1, command)
        bench.cpus.write(DATA, 4, value)
    assert bench.words == [(1, 0x103, 0x82)]
    assert bench.cpus.read(DATA, 4) == 0


def test_the_first_cpu_and_those_that_are_not_there_stay() -> None:
    bench = Bench()
    for cpu in (0, 3, 4, 0xFFFF_FFFF):
        bench.cpus.write(SELECTOR, 4, cpu)
        bench.cpus.write(FLAGS, 1, 0xFF)
        bench.cpus.write(DATA, 4, 1)
    assert bench.ejected == []
    assert bench.status(0xFFFF_FFFF) == 0


def test_ovmf_counts_them() -> None:
    """It selects one after another until the data register is 0 (edk2, PlatformMaxCpuCountInitialization)."""
    bench = Bench(cpus=4, there=2)
    bench.cpus.write(SELECTOR, 4, 0)
    bench.cpus.write(COMMAND, 1, 0)
    assert bench.cpus.read(SELECTOR, 4) == 0  # not the older interface
    possible = present = 0
    while not possible or bench.cpus.read(DATA, 4):
        present += bench.cpus.read(FLAGS, 1) & ENABLED
        possible += 1
        bench.cpus.write(SELECTOR, 4, possible)
    assert (possible, present) == (4, 2)


def test_slots() -> None:
    bench = Bench()
    bench.pci.came(5)
    bench.pci.came(6)
    assert bench.pci.read(0, 4) == 3 << 5
    assert bench.pci.read(0, 4) == 0  # told once
    assert not bench.line.high
    bench.pci.ask(5)
    bench.cpus.insert(2)
    assert bench.pci.read(4, 4) == 1 << 5
    assert bench.line.high  # for the CPU
    bench.pci.write(8, 4, 1 << 5 | 1 << 31)
    assert bench.slots == [5, 31]


def test_round_trips() -> None:
    bench = Bench()
    bench.cpus.insert(3)
    bench.cpus.ask(1)
    bench.cpus.write(SELECTOR, 4, 2)
    bench.cpus.write(COMMAND, 1, 1)
    bench.pci.came(7)
    other = Bench()
    other.cpus.restore(bench.cpus.save())
    other.pci.restore(bench.pci.save())
    assert (other.cpus.save(), other.pci.save()) == (bench.cpus.save(), bench.pci.save())
    assert other.line.high
    assert other.pci.read(0, 4) == 1 << 7


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=40))
def test_any_writes(accesses: list[tuple[int, int, int]]) -> None:
    bench = Bench()
    bench.cpus.insert(2)
    bench.pci.came(3)
    for offset, size, value in accesses:
        for block in (bench.cpus, bench.pci):
            block.write(offset, size, value & (1 << 8 * size) - 1)
            assert 0 <= block.read(offset, size) < 1 << 8 * size
    assert bench.cpus.enabled[0]
