# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files made by hand, for the loaders' tests."""

from __future__ import annotations

from struct import pack, pack_into

PVH_ENTRY = 0x10_0010
XEN_PHYS32_ENTRY = 18


def note(owner: bytes, kind: int, description: bytes) -> bytes:
    name = owner + b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0")
    return (
        pack("<III", len(name), len(description), kind)
        + padded
        + description.ljust(-(-len(description) // 4) * 4, b"\0")
    )


def elf(
    bits: int = 64,
    *,
    segments: tuple[tuple[int, bytes, int], ...] = ((0x10_0000, b"kernel" * 20, 0x2000),),
    notes: bytes = note(b"Xen", XEN_PHYS32_ENTRY, pack("<I", PVH_ENTRY)),
    machine: int = 62,
    entry: int = 0x10_0000,
    virtual: int = 0,
) -> bytes:
    """An executable of (physical address, data, size in memory) segments; virtual = physical + `virtual`."""
    header_size, phentsize = (64, 56) if bits == 64 else (52, 32)
    contents = [(1, address, data, size) for address, data, size in segments]
    if notes:
        contents.append((4, 0, notes, len(notes)))
    offset = header_size + phentsize * len(contents)
    table, body = b"", b""
    for kind, address, data, size in contents:
        at = offset + len(body)
        if bits == 64:
            table += pack("<IIQQQQQQ", kind, 5, at, address + virtual, address, len(data), size, 4)
        else:
            table += pack("<IIIIIIII", kind, at, address + virtual, address, len(data), size, 5, 4)
        body += data
    ident = b"\x7fELF" + bytes((2 if bits == 64 else 1, 1, 1)) + bytes(9)
    count = len(contents)
    if bits == 64:
        header = pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    else:
        header = pack("<HHIIIIIHHHHHH", 2, machine, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0)
    return ident + header + table + body


def bzimage(
    *,
    version: int = 0x20F,
    loadflags: int = 1,
    xloadflags: int = 1,
    address: int = 0x100_0000,
    init_size: int = 0x10_0000,
    cmdline_size: int = 2047,
    initrd_max: int = 0x7FFF_FFFF,
    code: bytes = b"\x90" * 4096,
) -> bytes:
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    pack_into("<I", image, 0x1F4, -(-len(code) // 16))
    image[0x200:0x206] = b"\xeb\x6aHdrS"
    pack_into("<H", image, 0x206, version)
    image[0x211] = loadflags
    pack_into("<I", image, 0x22C, initrd_max)
    pack_into("<IBBHI", image, 0x230, 0x20_0000, 1, 21, xloadflags, cmdline_size)
    pack_into("<QI", image, 0x258, address, init_size)
    return bytes(image) + code


def multiboot_header(flags: int = 0, *addresses: int) -> bytes:
    magic = 0x1BAD_B002
    return pack(f"<III{len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFF_FFFF, *addresses)
