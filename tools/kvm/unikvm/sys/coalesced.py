# SPDX-License-Identifier: GPL-2.0-only
"""Writes that KVM keeps in a ring instead of leaving the guest for each (api.rst, KVM_REGISTER_COALESCED_MMIO)."""

from __future__ import annotations

import mmap

from unikvm.cstruct import sizeof
from unikvm.sys.kvm import Vcpu, Vm
from unikvm.uapi.kvm import KVM_COALESCED_MMIO_PAGE_OFFSET
from unikvm.uapi.kvm_state import kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_coalesced_mmio_zone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RING = sizeof(kvm_coalesced_mmio_ring)
_ENTRY = sizeof(kvm_coalesced_mmio)
_ENTRIES = (mmap.PAGESIZE - _RING) // _ENTRY  # KVM_COALESCED_MMIO_MAX


class CoalescedWrites:
    """Those to `size` bytes from `gpa` on. The VM has one ring, so there can be one of these.

    `vcpu`: any, whose mapping has the ring. `take` is for one thread at a time.
    """

    def __init__(self, vm: Vm, vcpu: Vcpu, gpa: int, size: int) -> None:
        self._vm = vm
        self._zone = kvm_coalesced_mmio_zone(addr=gpa, size=size)
        at = KVM_COALESCED_MMIO_PAGE_OFFSET * mmap.PAGESIZE
        self._ring = memoryview(vcpu.run_map)[at : at + mmap.PAGESIZE]
        self._ends = self._ring[:_RING].cast("I")  # first, last

    def keep(self, on: bool) -> None:
        """From now on KVM keeps them, or no more: a full ring, too, makes the next one an exit."""
        self._vm.coalesce(self._zone, on)

    def take(self) -> Iterator[tuple[int, int, int]]:
        """Offset, size and value of each that is in the ring, in the order of the guest; it then is no more."""
        first = self._ends[0]
        while first != self._ends[1]:
            entry = kvm_coalesced_mmio.from_buffer(self._ring, _RING + first * _ENTRY)
            size = entry.len
            write = entry.phys_addr - self._zone.addr, size, int.from_bytes(bytes(entry.data[:size]), "little")
            first = (first + 1) % _ENTRIES
            self._ends[0] = first
            yield write
