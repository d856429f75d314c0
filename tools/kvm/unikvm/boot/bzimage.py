# SPDX-License-Identifier: GPL-2.0-only
"""bzImage through its 64-bit entry point (Linux Documentation/arch/x86/boot.rst, "64-bit boot protocol").

Offsets below are those of struct boot_params (the zero page); the setup header lies at the same place in the
file.
"""

from __future__ import annotations

from struct import pack, pack_into, unpack_from

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import LONG
from unikvm.boot.image import Entry, Image, Request, check_room, load_initrd, needs_memory, write_cmdline
from unikvm.memory import GuestMemory

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
_MIN_VERSION = 0x20C  # xloadflags
_UNDEFINED_LOADER = 0xFF
_SECTOR = 512
_ENTRY_64 = 0x200


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins with `head` (at least 0x206 bytes) is a Linux boot image."""
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def load(image: Image, memory: GuestMemory, request: Request) -> Entry:
    """Load a bzImage. CannotRun when it is not a 64-bit one, truncated, or does not fit."""
    head = image.pread(_HEAD_SIZE, 0)
    if len(head) < _HEAD_SIZE or not is_bzimage(head):
        raise image.bad("it is truncated: no Linux setup header")
    version, loadflags = unpack_from("<H", head, _VERSION)[0], head[_LOADFLAGS]
    if version < _MIN_VERSION or not loadflags & _LOADED_HIGH:
        raise image.bad(
            f"its boot protocol {version >> 8}.{version & 0xFF:02} is too old",
            "unikvm needs 2.12 or newer (Linux 3.8)",
        )
    if not unpack_from("<H", head, _XLOADFLAGS)[0] & _XLF_KERNEL_64:
        raise image.bad("it is a 32-bit kernel", "unikvm boots 64-bit bzImages only")
    address, end = _load_kernel(image, memory, head)
    limit = unpack_from("<I", head, _CMDLINE_SIZE)[0]
    cmdline = write_cmdline(image, memory, request.cmdline, limit)
    ceiling = unpack_from("<I", head, _INITRD_ADDR_MAX)[0] + 1
    initrd, initrd_size = load_initrd(image, memory, request.modules, end, ceiling)
    page = _zero_page(head, memory.size, cmdline, initrd, initrd_size, request.rsdp)
    pack_into("<I", page, _CODE32_START, address)
    memory.write(layout.ZERO_PAGE, page)
    return Entry(LONG, {"rip": address + _ENTRY_64, "rsi": layout.ZERO_PAGE})


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


def _zero_page(head: bytes, memory_size: int, cmdline: int, initrd: int, initrd_size: int, rsdp: int) -> bytearray:
    """struct boot_params: the file's setup header in a clean page, and what a loader has to fill in."""
    page = bytearray(layout.ZERO_PAGE_END - layout.ZERO_PAGE)
    header_end = min(MAGIC_AT + head[_JUMP_LENGTH], _HEAD_SIZE)
    page[_SETUP_SECTS:header_end] = head[_SETUP_SECTS:header_end]
    page[_TYPE_OF_LOADER] = _UNDEFINED_LOADER
    pack_into("<Q", page, _ACPI_RSDP, rsdp)
    pack_into("<II", page, _RAMDISK_IMAGE, initrd, initrd_size)  # below 4 GiB: the ext_ fields stay 0
    pack_into("<I", page, _CMD_LINE_PTR, cmdline)
    ranges = layout.e820(memory_size)
    page[_E820_ENTRIES] = len(ranges)
    table = b"".join(pack("<QQI", *entry) for entry in ranges)
    page[_E820_TABLE : _E820_TABLE + len(table)] = table
    return page
