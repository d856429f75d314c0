# SPDX-License-Identifier: GPL-2.0-only
"""Which vCPU is which thread of which core of which socket, and so its APIC ID.

Each level has a bit field of its own in the ID (Intel SDM vol. 3A §9.9.1, AMD APM vol. 3 appendix E.4.1), so that a
guest can tell them apart by shifting; where a level's size is no power of two, there are IDs that no vCPU has.
"""

from __future__ import annotations

from unikvm.record import Record

XAPIC_IDS = 0xFF  # IDs below it need no x2APIC; it is the broadcast itself


class Topology(Record):
    """`sockets` of `cores` of `threads` each."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores * self.threads

    @property
    def package(self) -> int:
        """vCPUs of a socket."""
        return self.cores * self.threads

    @property
    def thread_bits(self) -> int:
        """Bits of an ID that number the threads of a core."""
        return (self.threads - 1).bit_length()

    @property
    def package_bits(self) -> int:
        """Bits of an ID that number the vCPUs of a socket."""
        return self.thread_bits + (self.cores - 1).bit_length()

    def apic_id(self, index: int) -> int:
        """Of vCPU `index`: the threads of a core come first, then the cores of a socket."""
        socket, rest = divmod(index, self.package)
        core, thread = divmod(rest, self.threads)
        return socket << self.package_bits | core << self.thread_bits | thread

    @property
    def last_id(self) -> int:
        """The highest ID."""
        return self.apic_id(self.cpus - 1)
