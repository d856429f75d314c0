# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from unikvm.arch.x86_64 import layout, memorymap

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30


def test_the_document_is_fresh() -> None:
    """Else: cd tools/kvm && python3 -m unikvm.arch.x86_64.memorymap > ../../Documentation/memory-map.md"""
    assert (ROOT / "Documentation/memory-map.md").read_text() == memorymap.markdown()


@pytest.mark.parametrize("ranges", [memorymap.port_ranges()])
def test_ranges_ascend_and_do_not_overlap(ranges: list[tuple[int, int, str]]) -> None:
    for (start, end, _), (next_start, _, _) in pairwise(ranges):
        assert start < end <= next_start


def test_devices_are_outside_ram_and_apart() -> None:
    devices = [r for r in memorymap.memory_ranges() if r[0] >= layout.LOW_RAM_END]
    assert devices
    for (start, end, _), (next_start, _, _) in pairwise(devices):
        assert start < end <= next_start <= layout.HIGH_MEMORY


@pytest.mark.parametrize("size", [1 << 20, 256 << 20, 3 * GIB, 3 * GIB + 4096, 5 * GIB, 100 * GIB])
def test_e820_covers_the_ram(size: int) -> None:
    ranges = layout.e820(size)
    for (start, length, _), (next_start, _, _) in pairwise(ranges):
        assert length > 0
        assert start + length <= next_start
    ram = sum(length for _, length, kind in ranges if kind == layout.E820_RAM)
    assert ram == size - (layout.HIGH_RAM - layout.EBDA)
    assert sum(length for _, length in layout.ram_layout(size)) == size
    assert (layout.ECAM, layout.ECAM_END - layout.ECAM, layout.E820_RESERVED) in ranges


def test_the_64_bit_window_is_above_ram() -> None:
    assert layout.pci_mmio64(GIB) == (64 * GIB, 96 * GIB)
    start, end = layout.pci_mmio64(layout.ram_end(100 * GIB + 4096))
    assert start == 102 * GIB
    assert end - start == 32 * GIB


@pytest.mark.parametrize("size", [256 << 20, 3 * GIB, 5 * GIB + 4096])
def test_what_is_plugged_in_is_above_ram_and_below_the_window(size: int) -> None:
    """In steps that Linux can use whole."""
    start, length = layout.pluggable(size, (1 << 30) + (2 << 20))
    assert start >= max(layout.ram_end(size), layout.HIGH_MEMORY)
    assert start % GIB == 0
    assert length == GIB + (128 << 20)
    image = layout.above(start + length)
    assert start + length <= image
    assert layout.pci_mmio64(image + 1)[0] > image


def test_virtio_mmio_devices() -> None:
    assert layout.virtio_mmio(1) == (0xFEB0_1000, 17)
    with pytest.raises(ValueError, match="no virtio-mmio device 8"):
        layout.virtio_mmio(8)
