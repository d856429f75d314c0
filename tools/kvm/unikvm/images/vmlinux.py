# SPDX-License-Identifier: GPL-2.0-only
"""Unpacks the vmlinux of a bzImage, once: a kernel with a PVH note boots faster as an ELF than through its unpacker."""

from __future__ import annotations

import os
from struct import unpack_from

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import HEADER_END, HEADER_MAGIC, HEADER_MAGIC_AT, VERSION_AT, payload_extent

KEPT = 8  # unpacked kernels in the cache, 50 MB each
PROTOCOL_WITH_PAYLOAD = 0x208
PT_NOTE = 4
PHDR_SIZE = 56
XEN_ELFNOTE_PHYS32_ENTRY = 18


def vmlinux(image: str) -> str:
    """The path of `image`'s vmlinux, from the cache or unpacked into it; `image` itself when that has no PVH note.

    Raises CannotRun when the image is damaged or its compression is unknown here.
    """
    try:
        note = cache.entry("vmlinux", "by-name", cache.digest(cache.identity(image)))
        if os.path.exists(note):
            with open(note, encoding="utf-8") as file:
                known = file.read()
            if known == "-":
                return image
            if os.path.exists(known):
                cache.used(known)
                return known
        with open(image, "rb") as binary:
            packed = payload(image, binary.read())
    except OSError as error:
        raise CannotRun(f"cannot read {image}: {error.strerror}") from error
    path = cache.entry("vmlinux", cache.digest(packed))
    if not os.path.exists(path):
        content = decompress(image, packed)
        if not has_pvh_note(content):
            cache.write(note, [b"-"])
            return image
        cache.write(path, [content])
        cache.keep_newest(os.path.dirname(path), KEPT)
    cache.write(note, [path.encode()])
    return path


def payload(image: str, content: bytes) -> bytes:
    """The compressed kernel inside a bzImage (Linux: Documentation/arch/x86/boot.rst, payload_offset)."""
    if len(content) < HEADER_END or content[HEADER_MAGIC_AT : HEADER_MAGIC_AT + 4] != HEADER_MAGIC:
        raise CannotRun(f"{image} is not a bzImage")
    if unpack_from("<H", content, VERSION_AT)[0] < PROTOCOL_WITH_PAYLOAD:
        raise CannotRun(f"{image} is too old: its boot protocol is before 2.08")
    start, end = payload_extent(image, content, len(content))
    return content[start:end]


def decompress(image: str, packed: bytes) -> bytes:
    """Undo whichever compression the kernel was built with.

    The last 4 bytes are the kernel's size: gzip's format ends so, and the kernel's build appends it to the others
    (Linux: scripts/Makefile.lib, size_append). It tells what ends early where a format does not.
    """
    from unikvm.images import compression

    body = packed if compression.name_of(packed) == "gzip" else packed[:-4]
    content = compression.decompress(image, body)
    if len(packed) < 4 or len(content) != unpack_from("<I", packed, len(packed) - 4)[0]:
        raise CannotRun(f"{image} is damaged: its compressed kernel has not the size that it names")
    if content[:4] != b"\x7fELF":
        raise CannotRun(f"{image} is damaged: there is no ELF in it")
    return content


def has_pvh_note(elf: bytes) -> bool:
    """Whether an ELF64 has the note that names its PVH entry. What points outside of it is passed over."""
    if len(elf) < 64 or elf[4] != 2:
        return False
    table, entry_size, count = unpack_from("<Q", elf, 32)[0], *unpack_from("<HH", elf, 54)
    for at in (table + entry_size * index for index in range(count)):
        if at + PHDR_SIZE > len(elf):
            return False
        offset, size = unpack_from("<Q16xQ", elf, at + 8)
        if unpack_from("<I", elf, at)[0] == PT_NOTE and _has_entry(elf[offset : offset + size]):
            return True
    return False


def _has_entry(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = unpack_from("<III", notes, at)
        if kind == XEN_ELFNOTE_PHYS32_ENTRY and notes[at + 12 : at + 15] == b"Xen":
            return True
        at += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return False
