# SPDX-License-Identifier: GPL-2.0-only
"""What is under way, found from two rings: against a driver and a back end that answers in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from struct import pack

import pytest

from unikvm.errors import GuestFault
from unikvm.memory import GuestMemory
from unikvm.virtio.queue import Queue
from unikvm.virtio.underway import under_way

from .driver import Allocator, Ring, make_memory

SIZE = 64


class Pair:
    """A driver with a free list as Linux has it (last in, first out), and a back end."""

    def __init__(self, memory: GuestMemory, start: int = 0) -> None:
        self.queue = Queue(0, SIZE)
        self.ring = Ring(memory, Allocator(), SIZE)
        self.ring.set_up(self.queue)
        self.ring.set_avail_idx(start)
        memory.write(self.ring.used, pack("<HH", 0, start))
        self.queue.start(memory, 0)
        self._memory = memory
        self._used = start
        self.free = list(range(SIZE))
        self.waiting: list[int] = []

    def submit(self) -> None:
        head = self.free.pop()
        self.waiting.append(head)
        self.ring.offer(head)

    def answer(self, which: int) -> None:
        head = self.waiting.pop(which)
        self.free.append(head)
        element = self.ring.used + 4 + 8 * (self._used % SIZE)
        self._memory.write(element, pack("<II", head, 0))
        self._used = (self._used + 1) & 0xFFFF
        self._memory.write(self.ring.used + 2, pack("<H", self._used))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = make_memory()
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(50))
def test_exact_where_the_rings_reach_back_to_quiet_moments(memory: GuestMemory, seed: int) -> None:
    """Indices wrap; descriptors are used again at once; answers come in any order."""
    dice = random.Random(seed)
    pair = Pair(memory, start=dice.randrange(1 << 16))
    for _ in range(20):
        for _ in range(dice.randrange(16)):
            if pair.waiting and dice.random() < 0.5:
                pair.answer(dice.randrange(len(pair.waiting)))
            elif len(pair.waiting) < 6:
                pair.submit()
        assert under_way(pair.queue) == pair.waiting
        while pair.waiting:
            pair.answer(dice.randrange(len(pair.waiting)))
        assert under_way(pair.queue) == []


@pytest.mark.parametrize("depth", [1, 4, SIZE])
def test_exact_where_answers_come_in_order(memory: GuestMemory, depth: int) -> None:
    """However long ago the last quiet moment was."""
    pair = Pair(memory)
    for _ in range(100):
        while len(pair.waiting) < depth:
            pair.submit()
        assert under_way(pair.queue) == pair.waiting
        pair.answer(0)
        assert under_way(pair.queue) == pair.waiting


def test_rings_that_contradict_themselves_are_a_fault(memory: GuestMemory) -> None:
    pair = Pair(memory)
    pair.ring.offer(3)
    pair.ring.offer(3)
    with pytest.raises(GuestFault, match="do not say"):
        under_way(pair.queue)
    pair.ring.set_avail_idx(SIZE + 1)
    with pytest.raises(GuestFault, match="65 chains"):
        under_way(pair.queue)
