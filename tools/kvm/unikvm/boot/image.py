# SPDX-License-Identifier: GPL-2.0-only
"""What every loader shares: the file it reads, what it was asked to pass on, and the entry it returns."""

from __future__ import annotations

import os

from unikvm.arch.x86_64 import layout
from unikvm.errors import CannotRun
from unikvm.memory import GuestMemory
from unikvm.record import Record
from unikvm.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


PAGE = 4096

# What the VMM itself puts into low memory; a kernel must not be loaded over it.
_BOOT_DATA = (
    (layout.GDT, layout.GDT_END),
    (layout.BOOT_INFO, layout.ZERO_PAGE_END),
    (layout.PAGE_TABLES, layout.PAGE_TABLES_END),
    (layout.CMDLINE, layout.CMDLINE_END),
    (layout.ACPI, layout.ACPI_END),
)


class Image(Record):
    """An open file: `name` is for messages, `size` in bytes."""

    fd: int
    name: str
    size: int

    @classmethod
    def open(cls, path: str) -> Image:
        """Open `path` for reading; the caller closes `fd`. CannotRun when it is not a readable file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block
        except OSError as error:
            raise CannotRun(f"cannot open {path}: {error.strerror}") from error
        status = os.fstat(fd)
        if status.st_mode & 0o170000 != 0o100000:  # S_IFMT, S_IFREG, without loading `stat`
            os.close(fd)
            raise CannotRun(f"{path} is not a regular file")
        return cls(fd, path, status.st_size)

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        if not 0 <= offset < self.size:
            return b""
        return os.pread(self.fd, min(length, self.size - offset), offset)

    def bad(self, why: str, hint: str = "") -> CannotRun:
        """The error for this file."""
        return CannotRun(f"{self.name}: {why}", hint=hint)


class Request(Record):
    """What the guest is to find: command line, modules (Linux: initramfs archives), the RSDP's address (0:
    none)."""

    cmdline: bytes = b""
    modules: Sequence[Image] = ()
    rsdp: int = 0


class Entry(Record):
    """Where the guest starts: a mode of arch.x86_64.state and the registers that are not 0."""

    mode: str
    registers: Mapping[str, int]


class Segment(Record):
    """`file_size` bytes at `offset` of the file go to [address, address + size), the rest of it is zero."""

    address: int
    size: int
    offset: int
    file_size: int


def load_segments(image: Image, memory: GuestMemory, segments: Sequence[Segment]) -> tuple[int, int]:
    """Read `segments` into RAM. Returns the [start, end) of all of them. CannotRun when one does not fit."""
    if not segments:
        raise image.bad("it has nothing to load")
    last_end = 0
    ordered = sorted(segments, key=lambda each: each.address)
    for segment in ordered:
        start, end = segment.address, segment.address + segment.size
        if segment.file_size > segment.size or segment.offset + segment.file_size > image.size:
            raise image.bad(f"it is truncated or corrupt: a segment at {start:#x} reaches beyond the file")
        if start < last_end:
            raise image.bad(f"it is corrupt: its segments overlap at {start:#x}")
        check_room(image, memory, start, end)
        memory.readinto_from(image.fd, segment.offset, start, segment.file_size)
        last_end = end
    return ordered[0].address, last_end


def check_room(image: Image, memory: GuestMemory, start: int, end: int) -> None:
    """CannotRun when [start, end) is not RAM, or is where the VMM puts its own data."""
    if end > layout.low_ram_end(memory.size):
        if end <= layout.LOW_RAM_END:
            raise needs_memory(image, end)
        raise image.bad(f"it wants to be loaded at [{start:#x}, {end:#x}), where there is no RAM")
    for taken_start, taken_end in _BOOT_DATA:
        if start < taken_end and taken_start < end:
            raise image.bad(f"it wants to be loaded at [{start:#x}, {end:#x}), over the VMM's own data")


def needs_memory(image: Image, end: int) -> CannotRun:
    """The error for RAM that ends before `end`."""
    return image.bad("the memory is too small for it", f"it needs at least {-(-end // MIB)}M: -m {-(-end // MIB)}M")


def write_cmdline(image: Image, memory: GuestMemory, cmdline: bytes, limit: int) -> int:
    """Store the command line with its terminating zero; at most `limit` bytes without it. Returns its
    address."""
    limit = min(limit, layout.CMDLINE_END - layout.CMDLINE - 1)
    if len(cmdline) > limit:
        raise image.bad(f"the command line has {len(cmdline)} bytes, the limit is {limit}")
    if b"\0" in cmdline:
        raise image.bad("the command line has a zero byte")
    memory.write(layout.CMDLINE, cmdline + b"\0")
    return layout.CMDLINE


def load_initrd(
    image: Image, memory: GuestMemory, archives: Sequence[Image], kernel: tuple[int, int], ceiling: int
) -> tuple[int, int]:
    """Load the archives as one initramfs, as high below `ceiling` as it fits. Returns its (address, size).

    In little memory there may be no room behind the `kernel`, which fills [start, end); then they lie before it, where
    Linux leaves 15 MiB. The kernel unpacks concatenated archives one after the other when each starts at a multiple of
    4.
    """
    if not archives:
        return 0, 0
    size = 0
    for archive in archives:
        size = _align(size, 4) + archive.size
    if size == 0:
        raise archives[0].bad("the initramfs is empty")
    ceiling = min(ceiling, layout.low_ram_end(memory.size))
    start, end = kernel
    address = (ceiling - size) // PAGE * PAGE
    if address < end:
        address = (min(start, ceiling) - size) // PAGE * PAGE
    if address < layout.HIGH_RAM:
        missing = _align(end, PAGE) + _align(size, PAGE)
        if missing <= layout.LOW_RAM_END and ceiling == layout.low_ram_end(memory.size):
            raise needs_memory(image, missing)
        raise image.bad(f"its initramfs of {size} bytes does not fit below {ceiling:#x}")
    at = address
    for archive in archives:
        at = _align(at, 4)
        memory.readinto_from(archive.fd, 0, at, archive.size)
        at += archive.size
    return address, size


def load_modules(image: Image, memory: GuestMemory, modules: Iterable[Image], floor: int) -> list[tuple[int, int]]:
    """Load each module at a page of its own, from `floor` upwards. Returns their (address, size)."""
    placed = []
    at = _align(floor, PAGE)
    for module in modules:
        if at + module.size > layout.low_ram_end(memory.size):
            raise needs_memory(image, at + module.size)
        memory.readinto_from(module.fd, 0, at, module.size)
        placed.append((at, module.size))
        at = _align(at + module.size, PAGE)
    return placed


def _align(value: int, boundary: int) -> int:
    return -(-value // boundary) * boundary
