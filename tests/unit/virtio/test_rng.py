# SPDX-License-Identifier: GPL-2.0-only
"""The entropy device."""

from __future__ import annotations

from unikvm.virtio.rng import MAX_FILL, Rng
from unit.virtio.driver import bench


def test_fills_buffers() -> None:
    with bench(Rng(lambda count: bytes(range(count)))) as it:
        it.start()
        first, second = it.buffer(10), it.buffer(5)
        head = it.rings[0].add([], [first, second])
        it.kick(0)
        assert it.rings[0].take_used() == [(head, 15)]
        assert it.memory.read(*first) + it.memory.read(*second) == bytes(range(15))


def test_fills_no_more_than_its_limit() -> None:
    with bench(Rng(bytes)) as it:
        it.start()
        it.rings[0].add([], [(0x20_0000, 0x10_0000)])
        it.kick(0)
        assert it.rings[0].take_used()[0][1] == MAX_FILL


def test_nothing_to_fill() -> None:
    with bench(Rng()) as it:
        it.start()
        head = it.rings[0].add([it.buffer(4)], [])
        it.kick(0)
        assert it.rings[0].take_used() == [(head, 0)]
