# SPDX-License-Identifier: GPL-2.0-only
"""Split virtqueues against a mock driver: rings, chains, notifications, and drivers that break the rules."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.errors import GuestFault
from unikvm.memory import GuestMemory
from unikvm.uapi.virtio import (
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)
from unikvm.virtio.queue import MAX_CHAIN, Chain, Queue
from unit.virtio.driver import HIGH_GPA, RAM, Allocator, Ring, make_memory

INDIRECT = 1 << VIRTIO_RING_F_INDIRECT_DESC
EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX
SIZE = 8


class Pair:
    """Both ends of one queue."""

    def __init__(self, features: int = INDIRECT, size: int = SIZE, memory: GuestMemory | None = None) -> None:
        self.memory = memory or make_memory()
        self.allocator = Allocator()
        self.ring = Ring(self.memory, self.allocator, size)
        self.queue = Queue(0, size)
        self.interrupts = 0
        self.kicks = 0
        self.queue.interrupt = self._interrupt
        self.queue.kick = self._kick
        self.ring.set_up(self.queue)
        self.queue.start(self.memory, features)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def _kick(self) -> None:
        self.kicks += 1

    def serve(self) -> int:
        count = 0
        for chain in self.queue.available():
            self.queue.add_used(chain)
            count += 1
        self.queue.flush()
        return count


@pytest.fixture
def pair() -> Iterator[Pair]:
    it = Pair()
    yield it
    it.memory.close()


def pop(pair: Pair) -> Chain:
    chain = pair.queue.pop()
    assert chain is not None
    return chain


@pytest.mark.parametrize("indirect", [False, True])
def test_chain(pair: Pair, indirect: bool) -> None:
    pair.memory.write(0x1000, b"header")
    pair.memory.write(HIGH_GPA, b"body")
    head = pair.ring.add([(0x1000, 6), (HIGH_GPA, 4)], [(0x2000, 3), (0x3000, 5)], indirect=indirect)
    chain = pop(pair)
    assert (chain.readable_len, chain.writable_len) == (10, 8)
    assert chain.read(4) == b"head"
    assert chain.read(100) == b"erbody"
    assert chain.readable_len == 0
    assert chain.write(b"0123456789") == 8
    pair.queue.add_used(chain)
    assert pair.ring.take_used() == []  # not before the flush
    pair.queue.flush()
    assert pair.ring.take_used() == [(head, 8)]
    assert pair.memory.read(0x2000, 3) + pair.memory.read(0x3000, 5) == b"01234567"
    assert pair.queue.pop() is None


def test_direct_part_before_an_indirect_table(pair: Pair) -> None:
    pair.memory.write(0x1000, b"ab")
    pair.memory.write(0x4000, pack("<QIHH", 0x2000, 4, VRING_DESC_F_WRITE, 0))
    pair.ring.descriptor(0, 0x1000, 2, VRING_DESC_F_NEXT, 3)
    pair.ring.descriptor(3, 0x4000, 16, VRING_DESC_F_INDIRECT)
    pair.ring.offer(0)
    chain = pop(pair)
    assert (chain.read(9), chain.writable_len) == (b"ab", 4)


def test_skip_fill_and_last_byte(pair: Pair) -> None:
    pair.memory.write(0x1000, b"abcdef")
    pair.ring.add([(0x1000, 2), (0x1002, 4)], [(0x2000, 4), (0x2010, 4)])
    chain = pop(pair)
    chain.skip(3)
    assert chain.read(2) == b"de"
    status = chain.take_last()
    status[0] = 7
    assert chain.writable_len == 7
    chain.fill(5)
    chain.write(b"zz")
    assert (chain.writable_len, chain.written) == (0, 8)
    assert pair.memory.read(0x2010, 4) == b"\0zz\7"


def test_last_byte_of_nothing(pair: Pair) -> None:
    pair.ring.add([(0x1000, 2)], [])
    with pytest.raises(GuestFault, match="status"):
        pop(pair).take_last()


def test_empty_descriptors_are_harmless(pair: Pair) -> None:
    pair.ring.add([(0x1000, 0), (0x1000, 1)], [(0x2000, 0)])
    chain = pop(pair)
    assert (len(chain.readable), chain.writable) == (1, [])


def test_rings_wrap(pair: Pair) -> None:
    for _ in range(3 * 65536 // 64):
        heads = [pair.ring.add([], [(0x2000, 1)]) for _ in range(SIZE)]
        assert pair.serve() == SIZE
        assert [head for head, _ in pair.ring.take_used()] == heads


def test_size_one() -> None:
    pair = Pair(size=1)
    for _ in range(3):
        pair.ring.add([], [(0x2000, 1)])
        pair.serve()
        assert len(pair.ring.take_used()) == 1


def test_interrupt_flag(pair: Pair) -> None:
    pair.ring.add([], [(0x2000, 1)])
    pair.serve()
    assert pair.interrupts == 1
    pair.ring.set_no_interrupt(1)
    pair.ring.add([], [(0x2000, 1)])
    pair.serve()
    assert pair.interrupts == 1
    pair.serve()  # nothing new: nothing sent
    assert pair.interrupts == 1


def test_event_index() -> None:
    pair = Pair(EVENT_IDX)
    pair.ring.set_used_event(2)  # interrupt me when the third is used
    for expected in (0, 0, 1, 1):
        pair.ring.add([], [(0x2000, 1)])
        pair.serve()
        assert pair.interrupts == expected
        assert pair.ring.avail_event() == pair.ring.avail_idx  # the device wants to hear of the next one


def test_event_index_over_a_batch_and_the_wrap() -> None:
    pair = Pair(EVENT_IDX)
    for start in (0, 65534):
        pair = Pair(EVENT_IDX)
        pair.ring.set_avail_idx(start)
        pair.ring.used_idx = start
        state = pair.queue.save()
        pair.queue.restore(type(state)(SIZE, True, state.areas, start, start))
        pair.queue.start(pair.memory, EVENT_IDX)
        pair.ring.set_used_event(start + 1)
        for _ in range(4):
            pair.ring.add([], [(0x2000, 1)])
        assert pair.serve() == 4
        assert pair.interrupts == 1
        assert len(pair.ring.take_used()) == 4


def test_rearm_sees_what_came_in_between() -> None:
    pair = Pair(EVENT_IDX)
    assert not pair.queue.rearm()
    pair.ring.add([], [(0x2000, 1)])
    assert pair.queue.rearm()


def test_rearm_for_several_at_once() -> None:
    """Fewer than were asked for are no reason to go on, and the driver sees the wish."""
    pair = Pair(EVENT_IDX)
    pair.ring.add([], [(0x2000, 1)])
    assert not pair.queue.rearm(2)
    assert pair.ring.avail_event() == 1
    pair.ring.add([], [(0x2000, 1)])
    assert pair.queue.rearm(2)


def test_one_doorbell_serves_a_ring_at_most(pair: Pair) -> None:
    """A driver that adds while the device serves must not keep the io thread."""
    served = 0
    pair.ring.add([], [(0x2000, 1)])
    for chain in pair.queue.available():
        pair.queue.add_used(chain)
        pair.ring.add([], [(0x2000, 1)])
        served += 1
    assert served == SIZE
    assert pair.kicks == 1


def test_save_and_restore(pair: Pair) -> None:
    for _ in range(3):
        pair.ring.add([], [(0x2000, 1)])
    pair.serve()
    pair.ring.add([(0x1000, 5)], [])
    pair.queue.pop()
    state = pair.queue.save(held=1)
    queue = Queue(0, SIZE)
    queue.restore(state)
    queue.start(pair.memory, INDIRECT)
    assert queue.save() == state
    chain = queue.pop()  # the one that was held comes again
    assert chain is not None
    assert chain.readable_len == 5
    queue.add_used(chain)
    queue.flush()
    assert len(pair.ring.take_used()) == 4


@pytest.mark.parametrize("size", [0, 3, 16, 0xFFFF])
def test_bad_sizes(pair: Pair, size: int) -> None:
    pair.queue.size = size
    with pytest.raises(GuestFault, match="size"):
        pair.queue.start(pair.memory, 0)


@pytest.mark.parametrize("areas", [[8, 0, 0], [0, 1, 0], [0, 0, 2]])
def test_misaligned_areas(pair: Pair, areas: list[int]) -> None:
    pair.queue.areas = areas
    with pytest.raises(GuestFault, match="misaligned"):
        pair.queue.start(pair.memory, 0)


@pytest.mark.parametrize("area", [0, 1, 2])
@pytest.mark.parametrize("address", [RAM - 16, RAM, HIGH_GPA - 16, (1 << 64) - 16, 1 << 63])
def test_areas_outside_ram(pair: Pair, area: int, address: int) -> None:
    pair.queue.areas[area] = address
    with pytest.raises(GuestFault, match="not RAM"):
        pair.queue.start(pair.memory, 0)


def fault(pair: Pair, match: str) -> None:
    pair.ring.offer(0)
    with pytest.raises(GuestFault, match=match):
        pair.queue.pop()


def test_head_out_of_range(pair: Pair) -> None:
    pair.ring.offer(SIZE)
    with pytest.raises(GuestFault, match="descriptor 8 of 8"):
        pair.queue.pop()


def test_next_out_of_range(pair: Pair) -> None:
    pair.ring.descriptor(0, 0x1000, 1, VRING_DESC_F_NEXT, 0xFFFF)
    fault(pair, "descriptor 65535 of 8")


def test_loop(pair: Pair) -> None:
    pair.ring.descriptor(0, 0x1000, 1, VRING_DESC_F_NEXT, 1)
    pair.ring.descriptor(1, 0x1000, 1, VRING_DESC_F_NEXT, 0)
    fault(pair, f"more than {MAX_CHAIN}")


def test_readable_after_writable(pair: Pair) -> None:
    pair.ring.descriptor(0, 0x1000, 1, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1)
    pair.ring.descriptor(1, 0x1000, 1)
    fault(pair, "readable descriptor after")


@pytest.mark.parametrize(
    ("address", "length"), [(RAM - 1, 2), (HIGH_GPA - 1, 2), ((1 << 64) - 1, 0xFFFF_FFFF), (RAM, 1)]
)
def test_buffers_outside_ram(pair: Pair, address: int, length: int) -> None:
    pair.ring.descriptor(0, address, length)
    fault(pair, "not RAM")


@pytest.mark.parametrize("length", [0, 15, 17, 16 * (MAX_CHAIN + 1)])
def test_bad_indirect_lengths(pair: Pair, length: int) -> None:
    pair.ring.descriptor(0, 0x4000, length, VRING_DESC_F_INDIRECT)
    fault(pair, "indirect table of")


def test_nested_indirect(pair: Pair) -> None:
    pair.memory.write(0x4000, pack("<QIHH", 0x4000, 16, VRING_DESC_F_INDIRECT, 0))
    pair.ring.descriptor(0, 0x4000, 16, VRING_DESC_F_INDIRECT)
    fault(pair, "where none may be")


def test_indirect_with_next(pair: Pair) -> None:
    pair.ring.descriptor(0, 0x4000, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1)
    fault(pair, "where none may be")


def test_indirect_that_was_not_negotiated() -> None:
    pair = Pair(0)
    pair.ring.descriptor(0, 0x4000, 16, VRING_DESC_F_INDIRECT)
    fault(pair, "where none may be")


def test_indirect_next_out_of_range(pair: Pair) -> None:
    pair.memory.write(0x4000, pack("<QIHH", 0x1000, 1, VRING_DESC_F_NEXT, 1))
    pair.ring.descriptor(0, 0x4000, 16, VRING_DESC_F_INDIRECT)
    fault(pair, "descriptor 1 of 1")


def test_available_index_jumps(pair: Pair) -> None:
    pair.ring.set_avail_idx(SIZE + 1)
    with pytest.raises(GuestFault, match="jumped"):
        pair.queue.pop()


def test_available_index_goes_back(pair: Pair) -> None:
    pair.ring.add([], [(0x2000, 1)])
    pair.serve()
    pair.ring.set_avail_idx(0)
    with pytest.raises(GuestFault, match="jumped"):
        pair.queue.pop()


def test_chain_of_4_gib(pair: Pair) -> None:
    """A chain may name the same RAM again and again; its length must still fit 32 bits."""
    memory = GuestMemory([(0, 1 << 32)])
    pair = Pair(memory=memory)
    pair.ring.add([], [(0, 0xFFFF_FFFF), (0, 1)])
    with pytest.raises(GuestFault, match="4 GiB"):
        pair.queue.pop()
    memory.close()


ADDRESSES = st.one_of(
    st.integers(0, RAM),
    st.sampled_from([0x4000, 0x5000, RAM - 8, HIGH_GPA, HIGH_GPA - 8, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(st.integers(0, 64), st.sampled_from([16, 32, 128]), st.integers(0, 0xFFFF_FFFF))
DESCRIPTORS = st.tuples(ADDRESSES, LENGTHS, st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), st.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(DESCRIPTORS, min_size=SIZE, max_size=SIZE),
    indirect=st.lists(DESCRIPTORS, min_size=8, max_size=8),
    heads=st.lists(st.integers(0, SIZE + 1), max_size=SIZE),
    features=st.sampled_from([0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX]),
)
def test_random_descriptors(
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    features: int,
) -> None:
    """Whatever is in the rings: served, or a GuestFault."""
    pair = Pair(features)
    for index, (address, length, flags, following) in enumerate(table):
        pair.ring.descriptor(index, address, length, flags, following)
    pair.memory.write(0x4000, b"".join(pack("<QIHH", *descriptor) for descriptor in indirect))
    for head in heads:
        pair.ring.offer(head)
    try:
        for chain in pair.queue.available():
            assert chain.readable_len == sum(map(len, chain.readable))
            assert chain.writable_len == sum(map(len, chain.writable))
            chain.read(7)
            chain.write(b"x" * 9)
            if chain.writable:
                chain.take_last()
            pair.queue.add_used(chain)
    except GuestFault:
        pass
    pair.queue.flush()
    assert len(pair.ring.take_used()) <= len(heads)
    pair.memory.close()
