# SPDX-License-Identifier: GPL-2.0-only
"""Guest RAM: one mapping, laid out around the PCI hole below 4 GiB.

Guest-physical and host addresses are different types. Every address and length that comes from a guest passes
`GuestMemory.view`, the one door.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun, GuestFault
from unikvm.record import Record
from unikvm.sys.mapping import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NewType

    GuestAddress = NewType("GuestAddress", int)
    HostAddress = NewType("HostAddress", int)
else:
    GuestAddress = HostAddress = int


class Region(Record):
    """A stretch of RAM: guest-physical [gpa, gpa + size), at `offset` in the memfd and at host address `hva`."""

    gpa: GuestAddress
    size: int
    offset: int
    hva: HostAddress


class GuestMemory:
    """RAM of one guest."""

    def __init__(self, layout: Sequence[tuple[int, int]], *, shared: bool = False) -> None:
        """`layout`: the (guest-physical start, size in bytes) of each stretch, ascending and not overlapping.

        `shared`: a memfd, which other processes can map, instead of anonymous memory, which has huge pages.
        """
        self.size = sum(size for _, size in layout)
        self._mapping = Mapping(self.size, shared=shared)
        self.fd = self._mapping.fd
        whole = self._mapping.view
        regions = []
        self._map: list[tuple[int, int, memoryview]] = []
        start = 0
        for gpa, size in layout:
            hva = HostAddress(self._mapping.address + start)
            regions.append(Region(GuestAddress(gpa), size, self._mapping.offset + start, hva))
            self._map.append((gpa, gpa + size, whole[start : start + size]))
            start += size
        self.regions = tuple(regions)

    def view(self, gpa: int, length: int) -> memoryview:
        """The RAM at [gpa, gpa + length), writable, the guest's own.

        Raises GuestFault when any of it is outside one stretch of RAM.
        """
        if length >= 0:
            for start, end, ram in self._map:
                if start <= gpa and gpa + length <= end:
                    return ram[gpa - start : gpa - start + length]
        raise GuestFault(f"guest memory [{gpa:#x}, {gpa + length:#x}) is not RAM")

    def host_address(self, gpa: int) -> int:
        """The host address of `gpa`; GuestFault where that is not RAM."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return region.hva + gpa - region.gpa
        raise GuestFault(f"guest memory {gpa:#x} is not RAM")

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
