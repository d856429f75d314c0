# SPDX-License-Identifier: GPL-2.0-only
"""memfd-backed shared memory: guest RAM that other processes can map."""

from __future__ import annotations

import ctypes
import mmap
import os

from unikvm.errors import CannotRun


class SharedMemory:
    """`size` bytes of zeroed memory behind `fd`, mapped shared at host address `address`."""

    def __init__(self, name: str, size: int, *, hugepages: bool = False) -> None:
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if hugepages else 0)
        try:
            self.fd = os.memfd_create(name, flags)
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except (OSError, OverflowError, ValueError) as error:
            raise CannotRun(
                f"cannot map {size >> 20} MiB of guest memory: {error}", hint="give less with --mem"
            ) from error
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def close(self) -> None:
        """Release the descriptor; the mapping goes with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
