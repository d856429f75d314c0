# SPDX-License-Identifier: GPL-2.0-only
"""Guest RAM: one mapping, laid out around the PCI hole below 4 GiB.

Guest-physical and host addresses are different types. Every address and length that comes from a guest passes
`GuestMemory.view`, the one door; what a guest gives back passes `give_back`, which looks as closely.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun, GuestFault
from unikvm.record import Record
from unikvm.sys.mapping import Mapping, address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NewType

    GuestAddress = NewType("GuestAddress", int)
    HostAddress = NewType("HostAddress", int)
else:
    GuestAddress = HostAddress = int

PAGE = 4096


class Region(Record):
    """A stretch of RAM: guest-physical [gpa, gpa + size), at `offset` in the memfd and at host address `hva`."""

    gpa: GuestAddress
    size: int
    offset: int
    hva: HostAddress


class GuestMemory:
    """RAM of one guest. `size` bytes of it are there from the start; `regions` has the pluggable one as well."""

    def __init__(
        self,
        layout: Sequence[tuple[int, int]],
        *,
        shared: bool = False,
        pluggable: tuple[int, int] | None = None,
        hugepages: bool = False,
    ) -> None:
        """`layout`: the (guest-physical start, size in bytes) of each stretch, ascending and not overlapping.

        `shared`: a memfd, which other processes can map, instead of anonymous memory, which has huge pages.
        `pluggable`: one more stretch above them, which virtio-mem hands out. `hugepages`: of hugetlbfs; those for what
        is there from the start are reserved at once.
        """
        self.size = sum(size for _, size in layout)
        every = (*layout, pluggable) if pluggable else layout
        total = sum(size for _, size in every)
        if hugepages:
            from unikvm.sys.hugepages import HugeMapping

            self._mapping: Mapping = HugeMapping(total, self.size)
        else:
            self._mapping = Mapping(total, shared=shared)
        self.fd = self._mapping.fd
        whole = self._mapping.view
        regions = []
        self._map: list[tuple[int, int, memoryview]] = []
        start = 0
        for gpa, size in every:
            hva = HostAddress(self._mapping.address + start)
            regions.append(Region(GuestAddress(gpa), size, self._mapping.offset + start, hva))
            self._map.append((gpa, gpa + size, whole[start : start + size]))
            start += size
        # The stretch from 0, where most is: each descriptor of a device in Python asks for its RAM.
        self._low_end, self._low = self._map[0][1:] if self._map[0][0] == 0 else (-1, whole)
        self.regions = tuple(regions)
        self.attached: tuple[Region, ...] = ()  # not RAM, and not in the memfd

    def attach(self, gpa: int, view: memoryview, hva: int) -> Region:
        """Let devices reach `view`, at host address `hva`, as guest memory at `gpa`; before there are any."""
        region = Region(GuestAddress(gpa), len(view), 0, HostAddress(hva))
        self._map.append((gpa, gpa + len(view), view))
        self.attached += (region,)
        return region

    def view(self, gpa: int, length: int) -> memoryview:
        """The RAM at [gpa, gpa + length), writable, the guest's own.

        Raises GuestFault when any of it is outside one stretch of RAM.
        """
        end = gpa + length
        if 0 <= gpa <= end <= self._low_end:
            return self._low[gpa:end]
        if length >= 0:
            for start, end, ram in self._map:
                if start <= gpa and gpa + length <= end:
                    return ram[gpa - start : gpa - start + length]
        raise GuestFault(f"guest memory [{gpa:#x}, {gpa + length:#x}) is not RAM")

    def host_address(self, gpa: int) -> int:
        """The host address of `gpa`; GuestFault where that is not RAM."""
        for region in (*self.regions, *self.attached):
            if region.gpa <= gpa < region.gpa + region.size:
                return region.hva + gpa - region.gpa
        raise GuestFault(f"guest memory {gpa:#x} is not RAM")

    def give_back(self, gpa: int, length: int) -> None:
        """Let the host have [gpa, gpa + length): it reads as zero from now on. GuestFault where it is not RAM, or not
        whole pages."""
        self._mapping.give_back(self._in_mapping(gpa, length), length)

    def give_back_view(self, view: memoryview) -> None:
        """As `give_back`, for the whole pages in what `view` once gave. What is attached stays as it is."""
        start = address_of(view) - self._mapping.address
        end = (start + len(view)) & -PAGE
        start = (start + PAGE - 1) & -PAGE
        if 0 <= start < end <= len(self._mapping.view):
            self._mapping.give_back(start, end - start)

    def take(self, gpa: int, length: int) -> bool:
        """See that the host has memory for [gpa, gpa + length), whole pages; False where it has not."""
        return self._mapping.take(self._in_mapping(gpa, length), length)

    def _in_mapping(self, gpa: int, length: int) -> int:
        """Where the whole pages [gpa, gpa + length) are in the mapping."""
        if length > 0 and not (gpa | length) % PAGE:
            for region in self.regions:
                if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                    return region.offset - self._mapping.offset + gpa - region.gpa
        raise GuestFault(f"guest memory [{gpa:#x}, {gpa + length:#x}) is not whole pages of RAM")

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of [gpa, gpa + length)."""
        return self.view(gpa, length).tobytes()

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `gpa`."""
        self.view(gpa, len(data))[:] = data

    def readinto_from(self, fd: int, offset: int, gpa: int, length: int) -> None:
        """Read `length` bytes at `offset` of file `fd` straight into RAM; CannotRun when the file ends before."""
        target = self.view(gpa, length)
        while target:
            count = os.preadv(fd, [target], offset)
            if count == 0:
                raise CannotRun(f"the file is truncated: {len(target)} bytes missing at offset {offset}")
            target = target[count:]
            offset += count

    def close(self) -> None:
        self._mapping.close()
