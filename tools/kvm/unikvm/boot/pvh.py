# SPDX-License-Identifier: GPL-2.0-only
"""PVH: an ELF kernel with a 32-bit entry point in a Xen note (Xen docs/misc/pvh.pandoc,
xen/include/public/arch-x86/hvm/start_info.h).

What Linux calls CONFIG_PVH. No real mode, no decompressor: the fastest way into a kernel.
"""

from __future__ import annotations

from struct import pack

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import PROTECTED
from unikvm.boot import elf
from unikvm.boot.image import Entry, Image, Request, load_initrd, load_segments, write_cmdline
from unikvm.memory import GuestMemory

_NOTE_OWNER = b"Xen"
_NOTE_GUEST_OS = 6  # XEN_ELFNOTE_GUEST_OS
_NOTE_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_MAGIC = 0x336E_C578  # XEN_HVM_START_MAGIC_VALUE
_VERSION = 1  # has the memory map
_START_INFO_SIZE = 56
_MODULE_SIZE = 32
_LINUX_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86 less the zero; Linux would cut a longer one without a word
_ANY_CMDLINE = 1 << 16


def entry_point(image: Image, parsed: elf.Elf) -> tuple[int, bool] | None:
    """The 32-bit entry point and whether the kernel is Linux; None when there is no PVH note."""
    address = None
    is_linux = False
    for owner, kind, description in elf.notes(image, parsed):
        if owner == b"Linux" or ((owner, kind) == (_NOTE_OWNER, _NOTE_GUEST_OS) and description[:5] == b"linux"):
            is_linux = True
        elif (owner, kind) == (_NOTE_OWNER, _NOTE_PHYS32_ENTRY) and len(description) in (4, 8):
            address = int.from_bytes(description, "little")
    return None if address is None else (address, is_linux)


def is_linux(image: Image, parsed: elf.Elf) -> bool:
    """Whether an ELF file without a PVH note is a Linux kernel: since 4.19 it has notes of its own."""
    return any(owner == b"Linux" for owner, _, _ in elf.notes(image, parsed))


def load(image: Image, parsed: elf.Elf, memory: GuestMemory, request: Request) -> Entry:
    """Load an ELF file with a PVH note. CannotRun when it does not fit or is corrupt."""
    found = entry_point(image, parsed)
    if found is None:
        raise image.bad("it has no PVH note", "build the kernel with CONFIG_PVH=y, or boot its bzImage")
    address, is_linux = found
    span = load_segments(image, memory, parsed.segments)
    if not any(s.address <= address < s.address + s.size for s in parsed.segments):
        raise image.bad(f"it is corrupt: its PVH entry point {address:#x} is in no segment")
    cmdline = write_cmdline(image, memory, request.cmdline, _LINUX_CMDLINE if is_linux else _ANY_CMDLINE)
    initrd, initrd_size = load_initrd(image, memory, request.modules, span, layout.LOW_RAM_END)
    _write_start_info(memory, cmdline, initrd, initrd_size, request.rsdp)
    return Entry(PROTECTED, {"rip": address, "rbx": layout.BOOT_INFO})


def _write_start_info(memory: GuestMemory, cmdline: int, initrd: int, initrd_size: int, rsdp: int) -> None:
    """struct hvm_start_info, with the module list (one) and the memory map behind it."""
    modules_at = layout.BOOT_INFO + _START_INFO_SIZE + 8
    map_at = modules_at + _MODULE_SIZE
    ranges = layout.e820(memory.size)
    modules = 1 if initrd_size else 0
    start_info = pack(
        "<IIIIQQQQII",
        _MAGIC,
        _VERSION,
        0,
        modules,
        modules_at if modules else 0,
        cmdline,
        rsdp,
        map_at,
        len(ranges),
        0,
    )
    module = pack("<QQQQ", initrd, initrd_size, 0, 0)
    memory_map = b"".join(pack("<QQII", start, size, kind, 0) for start, size, kind in ranges)
    memory.write(layout.BOOT_INFO, start_info + bytes(8) + module + memory_map)
