# SPDX-License-Identifier: GPL-2.0-only
"""The balloon: what it gives back, what it asks, and what a driver cannot make it do."""

from __future__ import annotations

import random
from struct import pack

import pytest

from unikvm.errors import UnikvmError
from unikvm.memory import PAGE
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_NEEDS_RESET
from unikvm.uapi.virtio_balloon import (
    VIRTIO_BALLOON_F_PAGE_POISON,
    VIRTIO_BALLOON_S_AVAIL,
    VIRTIO_BALLOON_S_MEMFREE,
)
from unikvm.virtio.balloon import DEFLATE, HINTING, INFLATE, REPORTING, STATISTICS, Balloon
from unit.virtio.driver import HIGH_GPA, HIGH_SIZE, RAM, Bench, bench

DATA = b"\xaa" * PAGE
PAGE_A = 0x10_0000  # beyond what the bench's allocator has handed out
HIGH_PAGE = HIGH_GPA + 3 * PAGE


def pages(it: Bench, *numbers: int) -> tuple[int, int]:
    return it.buffer(pack(f"<{len(numbers)}I", *numbers))


def needs_reset(it: Bench) -> bool:
    return bool(it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET)


class SharedBalloon(Balloon):
    """With guest RAM in a memfd, as back ends want it."""

    shares_memory = True


@pytest.mark.parametrize("kind", [Balloon, SharedBalloon])
def test_pages_that_are_handed_over_are_zero_afterwards(kind: type[Balloon]) -> None:
    with bench(kind()) as it:
        it.start()
        for gpa in (PAGE_A, PAGE_A + PAGE, PAGE_A + 2 * PAGE, HIGH_PAGE):
            it.memory.write(gpa, DATA)
        numbers = (PAGE_A // PAGE + 1, HIGH_PAGE // PAGE, PAGE_A // PAGE)
        head = it.rings[INFLATE].add([pages(it, *numbers)], [])
        it.kick(INFLATE)
        assert it.rings[INFLATE].take_used() == [(head, 0)]
        for gpa in (PAGE_A, PAGE_A + PAGE, HIGH_PAGE):
            assert it.memory.read(gpa, PAGE) == bytes(PAGE)
        assert it.memory.read(PAGE_A + 2 * PAGE, PAGE) == DATA
        head = it.rings[DEFLATE].add([pages(it, *numbers)], [])
        it.kick(DEFLATE)
        assert it.rings[DEFLATE].take_used() == [(head, 0)]


@pytest.mark.parametrize(
    "request_",
    [pack("<I", RAM // PAGE), pack("<II", 0x100, 0xFFFF_FFFF), b"\x00\x01\x00", bytes(4 * 4097)],
)
def test_what_is_no_page_of_the_guest(request_: bytes) -> None:
    with bench(Balloon()) as it:
        it.start()
        it.rings[INFLATE].add([it.buffer(request_)], [])
        it.kick(INFLATE)
        assert needs_reset(it)
        it.device.write_status(0)
        it.start()
        assert not needs_reset(it)


@pytest.mark.parametrize("queue", [HINTING, REPORTING])
def test_reported_pages_are_given_back_but_for_parts_of_pages(queue: int) -> None:
    """Linux uses the one queue or the other."""
    with bench(Balloon()) as it:
        it.start()
        it.memory.write(PAGE_A, DATA * 4)
        head = it.rings[queue].add([], [(PAGE_A + 16, 3 * PAGE)])
        it.kick(queue)
        assert it.rings[queue].take_used() == [(head, 0)]
        assert it.memory.read(PAGE_A, 4 * PAGE) == DATA + bytes(2 * PAGE) + DATA
        it.rings[queue].add([], [(HIGH_GPA, HIGH_SIZE + 1)])
        it.kick(queue)
        assert needs_reset(it)


def test_reported_pages_stay_where_the_driver_fills_them_with_something() -> None:
    with bench(Balloon()) as it:
        it.start()
        it.device.write_config(12, 4, 0xAAAA_AAAA)
        it.memory.write(PAGE_A, DATA)
        it.rings[REPORTING].add([], [(PAGE_A, PAGE)])
        it.kick(REPORTING)
        assert it.memory.read(PAGE_A, PAGE) == DATA


def test_reports_without_the_feature() -> None:
    with bench(Balloon()) as it:
        it.start(features=it.device.offered & ~(1 << 5) & ~(1 << VIRTIO_BALLOON_F_PAGE_POISON))
        it.rings[REPORTING].add([], [(PAGE_A, PAGE)])
        it.kick(REPORTING)
        assert needs_reset(it)


def test_statistics_are_asked_for_each_time() -> None:
    balloon = Balloon()
    with bench(balloon) as it:
        with pytest.raises(UnikvmError, match="no driver for its balloon"):
            balloon.ask(print)
        it.start()
        said: list[dict[str, int]] = []
        ring = it.rings[STATISTICS]
        first = pack("<HQHQ", VIRTIO_BALLOON_S_MEMFREE, 4096, 999, 5)
        head = ring.add([it.buffer(first)], [])
        it.kick(STATISTICS)
        assert ring.take_used() == []
        balloon.ask(said.append)
        assert ring.take_used() == [(head, 0)]
        assert it.transport.queue_interrupts[STATISTICS] == 1
        balloon.ask(said.append)  # the buffer is on its way already
        ring.add([it.buffer(pack("<HQHQ", VIRTIO_BALLOON_S_MEMFREE, 8192, VIRTIO_BALLOON_S_AVAIL, 1 << 63) + b"x")], [])
        it.kick(STATISTICS)
        assert said == [{"free": 8192, "available": 1 << 63}] * 2


def test_target_and_actual() -> None:
    balloon = Balloon()
    with bench(balloon) as it:
        it.start()
        balloon.target = 64 << 20
        assert balloon.read_config(0, 4) == (64 << 20) // PAGE
        assert it.transport.config_interrupts == 1
        balloon.write_config(4, 4, 512)
        balloon.write_config(0, 4, 1)  # not the driver's
        balloon.write_config(14, 4, 1)  # over the end
        assert (balloon.actual, balloon.target) == (512 * PAGE, 64 << 20)
        balloon.write_status(0)
        assert (balloon.actual, balloon.target) == (0, 64 << 20)


def test_a_snapshot_keeps_the_balloon() -> None:
    balloon = Balloon()
    with bench(balloon) as it:
        it.start()
        balloon.target = 8 << 20
        balloon.write_config(4, 4, 100)
        it.rings[STATISTICS].add([it.buffer(pack("<HQ", VIRTIO_BALLOON_S_MEMFREE, 4096))], [])
        it.kick(STATISTICS)
        state = balloon.save()
        balloon.write_status(0)
        balloon.target = 0
        balloon.restore(state)
        it.settle()
        assert (balloon.actual, balloon.target) == (100 * PAGE, 8 << 20)
        said: list[dict[str, int]] = []
        balloon.ask(said.append)  # the driver's buffer was taken again
        assert len(it.rings[STATISTICS].take_used()) == 1


def test_random_requests_touch_nothing_else() -> None:
    """Whatever a driver sends: the first page of what it did not name is what it was."""
    rng = random.Random(5)
    with bench(Balloon()) as it:
        it.start()
        it.memory.write(0, DATA)
        for _ in range(300):
            queue = rng.randrange(5)
            data = rng.randbytes(rng.randrange(40))
            if queue == INFLATE:
                data = b"".join(pack("<I", max(1, int.from_bytes(data[i : i + 4], "little"))) for i in range(0, 32, 4))
            address = rng.choice((0x20_0000, RAM - 16, HIGH_GPA, rng.getrandbits(40)))
            it.allocator.next = 0x18_0000
            it.rings[queue].add([it.buffer(data)], [(address, rng.randrange(1, 9000))] if rng.random() < 0.6 else [])
            it.kick(queue)
            if needs_reset(it):
                it.device.write_status(0)
                it.allocator.next = 0x10000
                it.start()
            assert it.memory.read(0, PAGE) == DATA
