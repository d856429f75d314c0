# SPDX-License-Identifier: GPL-2.0-only
"""Multiboot 1 (Multiboot Specification 0.6.96): ELF files, and flat ones whose header has the addresses."""

from __future__ import annotations

from struct import pack, unpack_from

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import PROTECTED
from unikvm.boot import elf
from unikvm.boot.image import Entry, Image, Request, Segment, load_modules, load_segments
from unikvm.memory import GuestMemory

_HEADER_MAGIC = 0x1BAD_B002
_LOADER_MAGIC = 0x2BAD_B002
_SEARCH = 8192  # §3.1: the header is within the first 8192 bytes, 32-bit aligned
_PAGE_ALIGN, _MEMORY_INFO, _VIDEO_MODE, _ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_UNDERSTOOD = _PAGE_ALIGN | _MEMORY_INFO | _VIDEO_MODE  # of the bits 0-15, which a loader must understand

_INFO_MEMORY, _INFO_CMDLINE, _INFO_MODULES, _INFO_MMAP, _INFO_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_INFO_SIZE = 88
_MAX_MODULES = 16


def find_header(image: Image) -> int | None:
    """The file offset of the multiboot header, or None."""
    data = image.pread(_SEARCH, 0)
    at = data.find(_HEADER_MAGIC.to_bytes(4, "little"))
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(data) and sum(unpack_from("<III", data, at)) & 0xFFFF_FFFF == 0:
            return at
        at = data.find(_HEADER_MAGIC.to_bytes(4, "little"), at + 1)
    return None


def load(image: Image, header_at: int, memory: GuestMemory, request: Request) -> Entry:
    """Load the file whose header `find_header` found. CannotRun when it does not fit or is corrupt."""
    flags = unpack_from("<I", image.pread(8, header_at), 4)[0]
    if flags & 0xFFFF & ~_UNDERSTOOD:
        raise image.bad(f"its multiboot header asks for what unikvm does not have (flags {flags:#x})")
    if flags & _ADDRESSES:
        entry, segments = _addresses(image, header_at)
    else:
        parsed = elf.parse(image)
        entry, segments = parsed.physical(parsed.entry), parsed.segments
    _, end = load_segments(image, memory, segments)
    if not any(s.address <= entry < s.address + s.size for s in segments):
        raise image.bad(f"it is corrupt: its entry point {entry:#x} is in no segment")
    modules = load_modules(image, memory, request.modules, max(end, layout.HIGH_RAM))
    _write_info(image, memory, request, modules)
    return Entry(PROTECTED, {"rip": entry, "rax": _LOADER_MAGIC, "rbx": layout.BOOT_INFO})


def _addresses(image: Image, header_at: int) -> tuple[int, tuple[Segment, ...]]:
    """§3.1.3, the "a.out kludge": entry point and the one segment, from the header's address fields."""
    fields = image.pread(20, header_at + 12)
    if len(fields) < 20:
        raise image.bad("it is truncated: its multiboot header ends early")
    header, start, load_end, bss_end, entry = unpack_from("<5I", fields)
    offset = header_at - (header - start)
    file_size = (load_end - start) if load_end else image.size - offset
    if header < start or offset < 0 or file_size <= 0:
        raise image.bad("it is corrupt: the addresses in its multiboot header contradict each other")
    size = max(bss_end - start, file_size) if bss_end else file_size
    return entry, (Segment(start, size, offset, file_size),)


def _write_info(image: Image, memory: GuestMemory, request: Request, modules: list[tuple[int, int]]) -> None:
    """§3.3: the information structure, with what it points to behind it in the same page."""
    if len(modules) > _MAX_MODULES:
        raise image.bad(f"{len(modules)} modules are too many, the limit is {_MAX_MODULES}")
    cmdline = _write_strings(image, memory, [request.cmdline, b"unikvm", *(_base(m) for m in request.modules)])
    mmap_at = layout.BOOT_INFO + _INFO_SIZE
    # Each entry is preceded by its size, which does not count itself.
    mmap = b"".join(pack("<IQQI", 20, *entry) for entry in layout.e820(memory.size))
    modules_at = mmap_at + len(mmap)
    table = b"".join(
        pack("<IIII", start, start + size, name, 0) for (start, size), name in zip(modules, cmdline[2:], strict=True)
    )
    low = min(layout.EBDA, memory.size) >> 10
    upper = max(layout.low_ram_end(memory.size) - layout.HIGH_RAM, 0) >> 10
    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MMAP | _INFO_LOADER | (_INFO_MODULES if modules else 0)
    info = pack("<IIIIIII16xII", flags, low, upper, 0, cmdline[0], len(modules), modules_at, len(mmap), mmap_at)
    info += pack("<IIII", 0, 0, 0, cmdline[1])  # no drives, no configuration table; the loader's name
    memory.write(layout.BOOT_INFO, info.ljust(_INFO_SIZE, b"\0") + mmap + table)


def _base(module: Image) -> bytes:
    return module.name.rpartition("/")[2].encode(errors="surrogateescape")


def _write_strings(image: Image, memory: GuestMemory, strings: list[bytes]) -> list[int]:
    """Store the strings one after the other, zero-terminated. Returns their addresses."""
    addresses = []
    at = int(layout.CMDLINE)
    for text in strings:
        if at + len(text) + 1 > layout.CMDLINE_END:
            limit = layout.CMDLINE_END - layout.CMDLINE - 1
            raise image.bad(f"the command line has {len(strings[0])} bytes, the limit is about {limit}")
        memory.write(at, text + b"\0")
        addresses.append(at)
        at += len(text) + 1
    return addresses
