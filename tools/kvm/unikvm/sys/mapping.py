# SPDX-License-Identifier: GPL-2.0-only
"""Memory for a guest: anonymous with transparent huge pages, or a memfd that other processes can map."""

from __future__ import annotations

import fcntl
import mmap
import os

from unikvm.cstruct import addressof, c_char
from unikvm.errors import CannotRun

HUGE_PAGE = 2 << 20
MAP_NORESERVE = 0x4000  # asm-generic/mman.h; the mmap module does not name it before Python 3.13


class Mapping:
    """`size` bytes of zeroed memory at host address `address`, a multiple of 2 MiB; `view` of them; `fd` or -1.

    KVM maps a huge page at once where host and guest addresses agree in their low bits: a fault for 2 MiB instead of
    one for each 4 KiB, which is most of what a boot exits for. Shared memory has huge pages only where the host's
    administrator allowed them (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    """

    def __init__(self, size: int, *, shared: bool = False) -> None:
        self.size = size
        self.fd = -1
        room = size + HUGE_PAGE
        try:
            if shared:
                self.fd = _sealed_memfd(room + HUGE_PAGE)
                self._map, start, skipped = _map_congruent(self.fd, room)
            else:
                # Reserved when it is touched, as a guest's memory mostly is not.
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
                self._map = mmap.mmap(-1, room, flags)
                start, skipped = address_of(self._map), 0
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, OverflowError, ValueError) as error:
            message = f"cannot map {size >> 20} MiB of guest memory: {error}"
            raise CannotRun(message, hint="give less with --mem") from error
        before = -start % HUGE_PAGE  # of the memory in the mapping
        self.offset = skipped + before  # of the memory in the memfd
        self.address = start + before
        self.view = memoryview(self._map)[before : before + size]

    def give_back(self, start: int, length: int) -> None:
        """Let the host have `length` bytes at `start`, whole pages: until they are written again they read as zero and
        take no memory. OSError where the kernel cannot."""
        if self.fd < 0:
            self._map.madvise(mmap.MADV_DONTNEED, self.address - address_of(self._map) + start, length)
            return
        from unikvm.sys.fallocate import punch_hole  # others have the pages mapped: they go from the file itself

        punch_hole(self.fd, self.offset + start, length)

    def take(self, start: int, length: int) -> bool:
        """See that there is memory for `length` bytes at `start`, where none is yet; False where there is none.

        Pages of the usual size come when they are touched.
        """
        return True

    def close(self) -> None:
        """Release the descriptor; the memory goes with the last view of it."""
        self.view.release()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileMapping:
    """The whole of file `fd`, `size` bytes, at host address `address`; `view` of it. What is written goes to the file
    (`shared`) or is this process's own."""

    def __init__(self, fd: int, size: int, *, shared: bool) -> None:
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | MAP_NORESERVE
        self._map = mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        self.address = address_of(self._map)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Let go; the mapping, and with it the lock of the file, goes with the last view of it."""
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            pass


def address_of(buffer: mmap.mmap | memoryview) -> int:
    """The host address of a writable buffer."""
    return addressof(c_char.from_buffer(buffer))


def _sealed_memfd(size: int) -> int:
    """A memfd whose size nobody can change: whoever else maps it could else take the memory away, and an access to it
    would end this process."""
    fd = os.memfd_create("unikvm-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _map_congruent(fd: int, size: int) -> tuple[mmap.mmap, int, int]:
    """Map `size` bytes so that address and offset in the file agree in their low bits, or no page of it can be huge.

    (mapping, address, offset). The address is the kernel's choice, so look first, then map what fits it; the same place
    is free again unless another thread was faster, which costs speed alone.
    """
    offset = 0
    for _ in range(3):
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)
        start = address_of(mapping)
        if start % HUGE_PAGE == offset:
            break
        offset = start % HUGE_PAGE
        mapping.close()
    else:
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)
        start = address_of(mapping)
    return mapping, start, offset
