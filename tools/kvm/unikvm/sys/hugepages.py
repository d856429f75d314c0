# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory in huge pages that the administrator set aside (hugetlbfs; Linux: admin-guide/mm/hugetlbpage.rst).

A page that is not there when it is touched would end this process with SIGBUS. So what a guest has is reserved first:
the kernel keeps as many pages free for a file as its shared mappings span, and goes on to when they are gone, until a
hole is punched.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from unikvm.errors import CannotRun
from unikvm.sys.mapping import HUGE_PAGE, MAP_NORESERVE, Mapping, address_of

_POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"


class HugeMapping(Mapping):
    """As `Mapping`, in pages of 2 MiB. The first `reserved` of `size` bytes are there for certain."""

    def __init__(self, size: int, reserved: int) -> None:
        if size % HUGE_PAGE or reserved % HUGE_PAGE:
            raise CannotRun(f"{reserved >> 10}K of memory is not whole huge pages", hint="give a multiple of 2M")
        self.size = size
        self.offset = 0
        try:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB | os.MFD_HUGE_2MB
            self.fd = os.memfd_create("unikvm-ram", flags)
        except OSError as error:
            raise CannotRun(
                f"this host has no huge pages of 2 MiB: {error.strerror}", hint="leave out hugepages"
            ) from None
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            if not self.take(0, reserved):
                raise _too_few(reserved // HUGE_PAGE)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED | MAP_NORESERVE)
        except OSError as error:
            os.close(self.fd)
            raise CannotRun(f"cannot map {size >> 20} MiB of huge pages: {error.strerror}") from None
        except BaseException:
            os.close(self.fd)
            raise
        self.address = address_of(self._map)
        self.view = memoryview(self._map)

    def give_back(self, start: int, length: int) -> None:
        from unikvm.sys.fallocate import allocate, punch_hole

        # A hole takes the reservation along only where there was a page.
        allocate(self.fd, start, length)
        punch_hole(self.fd, start, length)

    def take(self, start: int, length: int) -> bool:
        try:
            mmap.mmap(self.fd, length, mmap.MAP_SHARED, offset=start).close()
        except OSError:
            return False
        return True


def _count(name: str) -> int:
    try:
        with open(f"{_POOL}/{name}", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0


def _too_few(wanted: int) -> CannotRun:
    free = max(_count("free_hugepages") - _count("resv_hugepages"), 0)
    return CannotRun(
        f"{wanted} huge pages of 2 MiB are needed, and this host has {free} to give",
        hint=f"set more aside: sysctl vm.nr_hugepages={_count('nr_hugepages') + wanted - free}",
    )
