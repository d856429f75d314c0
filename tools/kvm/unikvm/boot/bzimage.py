# SPDX-License-Identifier: GPL-2.0-only
"""Linux by its own boot protocol (Documentation/arch/x86/boot.rst): a bzImage through its 64-bit entry point, or its
32-bit one where it has no other, and a vmlinux without a PVH note, which starts like the former.

Offsets below are those of struct boot_params (the zero page); the setup header lies at the same place in the
file.
"""

from __future__ import annotations

from struct import pack, pack_into, unpack_from

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import LONG, PROTECTED
from unikvm.boot.image import (
    Entry,
    Image,
    Request,
    check_room,
    load_initrd,
    load_segments,
    needs_memory,
    write_cmdline,
)
from unikvm.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.boot.elf import Elf

MAGIC = b"HdrS"
MAGIC_AT = 0x202
_HEAD_SIZE = 0x280  # the setup header ends at 0x202 + its byte 0x201, at most here

_ACPI_RSDP = 0x070
_EXT_RAMDISK_IMAGE = 0x0C0
_E820_ENTRIES = 0x1E8
_SETUP_SECTS = 0x1F1
_SYSSIZE = 0x1F4
_BOOT_FLAG = 0x1FE
_JUMP_LENGTH = 0x201
_VERSION = 0x206
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_CODE32_START = 0x214
_RAMDISK_IMAGE = 0x218
_CMD_LINE_PTR = 0x228
_INITRD_ADDR_MAX = 0x22C
_KERNEL_ALIGNMENT = 0x230
_RELOCATABLE = 0x234
_XLOADFLAGS = 0x236
_CMDLINE_SIZE = 0x238
_PREF_ADDRESS = 0x258
_INIT_SIZE = 0x260
_E820_TABLE = 0x2D0

_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0
_MIN_VERSION = 0x20A  # pref_address and init_size
_VERSION_XLOADFLAGS = 0x20C
_VERSION_NOW = 0x20F
_BOOT_FLAG_MAGIC = 0xAA55
_ANY_INITRD_MAX = 0x7FFF_FFFF
_LINUX_CMDLINE = 2047  # COMMAND_LINE_SIZE less the zero
_UNDEFINED_LOADER = 0xFF
_SECTOR = 512
_ENTRY_64 = 0x200


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins with `head` (at least 0x206 bytes) is a Linux boot image."""
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def load(image: Image, memory: GuestMemory, request: Request) -> Entry:
    """Load a bzImage. CannotRun when it is too old, truncated, or does not fit."""
    head = image.pread(_HEAD_SIZE, 0)
    if len(head) < _HEAD_SIZE or not is_bzimage(head):
        raise image.bad("it is truncated: no Linux setup header")
    version, loadflags = unpack_from("<H", head, _VERSION)[0], head[_LOADFLAGS]
    if version < _MIN_VERSION or not loadflags & _LOADED_HIGH:
        raise image.bad(
            f"its boot protocol {version >> 8}.{version & 0xFF:02} is too old",
            "unikvm needs 2.10 or newer (Linux 2.6.31)",
        )
    flags = unpack_from("<H", head, _XLOADFLAGS)[0] if version >= _VERSION_XLOADFLAGS else 0
    address, end = _load_kernel(image, memory, head)
    limit = unpack_from("<I", head, _CMDLINE_SIZE)[0]
    cmdline = write_cmdline(image, memory, request.cmdline, limit)
    ceiling = unpack_from("<I", head, _INITRD_ADDR_MAX)[0] + 1
    initrd = load_initrd(image, memory, request.modules, (address, end), ceiling)
    _write_zero_page(memory, head, address, cmdline, initrd, request.rsdp)
    if flags & _XLF_KERNEL_64:
        return Entry(LONG, {"rip": address + _ENTRY_64, "rsi": layout.ZERO_PAGE})
    return Entry(PROTECTED, {"rip": address, "rsi": layout.ZERO_PAGE})  # ebx, ebp and edi have to be 0, and are


def load_vmlinux(image: Image, parsed: Elf, memory: GuestMemory, request: Request) -> Entry:
    """Load a 64-bit ELF of Linux. What a bzImage's unpacker would do before it jumps there is done here."""
    span = load_segments(image, memory, parsed.segments)
    entry = parsed.physical(parsed.entry)
    if not any(s.address <= entry < s.address + s.size for s in parsed.segments):
        raise image.bad(f"it is corrupt: its entry point {entry:#x} is in no segment")
    cmdline = write_cmdline(image, memory, request.cmdline, _LINUX_CMDLINE)
    initrd = load_initrd(image, memory, request.modules, span, _ANY_INITRD_MAX + 1)
    head = bytearray(_HEAD_SIZE)
    pack_into("<H", head, _BOOT_FLAG, _BOOT_FLAG_MAGIC)
    head[_JUMP_LENGTH] = _HEAD_SIZE - MAGIC_AT
    pack_into("<4sH", head, MAGIC_AT, MAGIC, _VERSION_NOW)
    head[_LOADFLAGS] = _LOADED_HIGH
    pack_into("<I", head, _CMDLINE_SIZE, _LINUX_CMDLINE)
    _write_zero_page(memory, head, entry, cmdline, initrd, request.rsdp)
    return Entry(LONG, {"rip": entry, "rsi": layout.ZERO_PAGE})


def _load_kernel(image: Image, memory: GuestMemory, head: bytes) -> tuple[int, int]:
    """Read the protected-mode part to where it wants to be. Returns the [start, end) that the kernel
    needs."""
    offset = ((head[_SETUP_SECTS] or 4) + 1) * _SECTOR
    size = unpack_from("<I", head, _SYSSIZE)[0] * 16
    # syssize is rounded up: the last paragraph may be shorter in the file.
    if size == 0 or offset + size - 15 > image.size:
        raise image.bad(f"it is truncated: {offset + size} bytes are announced, {image.size} are there")
    size = min(size, image.size - offset)
    address = unpack_from("<Q", head, _PREF_ADDRESS)[0]
    alignment = unpack_from("<I", head, _KERNEL_ALIGNMENT)[0]
    end = address + max(unpack_from("<I", head, _INIT_SIZE)[0], size)
    if address < layout.HIGH_RAM or (alignment and head[_RELOCATABLE] and address % alignment):
        raise image.bad(f"it is corrupt: it prefers to be at {address:#x}")
    if layout.low_ram_end(memory.size) < end <= layout.LOW_RAM_END:
        raise needs_memory(image, end)
    check_room(image, memory, address, end)
    memory.readinto_from(image.fd, offset, address, size)
    return address, end


def _write_zero_page(
    memory: GuestMemory, head: bytes | bytearray, address: int, cmdline: int, initrd: tuple[int, int], rsdp: int
) -> None:
    """struct boot_params: the file's setup header in a clean page, and what a loader has to fill in."""
    page = bytearray(layout.ZERO_PAGE_END - layout.ZERO_PAGE)
    header_end = min(MAGIC_AT + head[_JUMP_LENGTH], _HEAD_SIZE)
    page[_SETUP_SECTS:header_end] = head[_SETUP_SECTS:header_end]
    page[_TYPE_OF_LOADER] = _UNDEFINED_LOADER
    pack_into("<Q", page, _ACPI_RSDP, rsdp)
    pack_into("<I", page, _CODE32_START, address)
    pack_into("<II", page, _RAMDISK_IMAGE, *initrd)  # below 4 GiB: the ext_ fields stay 0
    pack_into("<I", page, _CMD_LINE_PTR, cmdline)
    ranges = layout.e820(memory.size)
    page[_E820_ENTRIES] = len(ranges)
    table = b"".join(pack("<QQI", *entry) for entry in ranges)
    page[_E820_TABLE : _E820_TABLE + len(table)] = table
    memory.write(layout.ZERO_PAGE, page)
