# SPDX-License-Identifier: GPL-2.0-only
"""Unpacks the vmlinux of a bzImage, once: a kernel with a PVH note boots faster as an ELF than through its unpacker."""

from __future__ import annotations

import os
from struct import unpack_from
from typing import Any

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import HEADER_END, HEADER_MAGIC, HEADER_MAGIC_AT, VERSION_AT

SETUP_SECTS_AT = 0x1F1
PAYLOAD_AT = 0x248  # payload_offset and payload_length, boot protocol 2.08
PROTOCOL_WITH_PAYLOAD = 0x208
XEN_ELFNOTE_PHYS32_ENTRY = 18
LZ4_CHUNK = 8 << 20  # uncompressed bytes of a block of the legacy format
LZ4_MAGIC = b"\x02\x21\x4c\x18"


def vmlinux(image: str) -> str:
    """The path of `image`'s vmlinux, from the cache or unpacked into it; `image` itself when that has no PVH note.

    Raises CannotRun when the image is damaged or its compression is unknown here.
    """
    note = cache.entry("vmlinux", "by-name", cache.digest(cache.identity(image)))
    if os.path.exists(note):
        with open(note, encoding="utf-8") as file:
            known = file.read()
        if known == "-":
            return image
        if os.path.exists(known):
            return known
    with open(image, "rb") as file:
        packed = payload(image, file.read())
    path = cache.entry("vmlinux", cache.digest(packed))
    if not os.path.exists(path):
        content = decompress(image, packed)
        if not has_pvh_note(content):
            cache.write(note, [b"-"])
            return image
        cache.write(path, [content])
    cache.write(note, [path.encode()])
    return path


def payload(image: str, content: bytes) -> bytes:
    """The compressed kernel inside a bzImage (Linux: Documentation/arch/x86/boot.rst, payload_offset)."""
    if len(content) < HEADER_END or content[HEADER_MAGIC_AT : HEADER_MAGIC_AT + 4] != HEADER_MAGIC:
        raise CannotRun(f"{image} is not a bzImage")
    if unpack_from("<H", content, VERSION_AT)[0] < PROTOCOL_WITH_PAYLOAD:
        raise CannotRun(f"{image} is too old: its boot protocol is before 2.08")
    offset, length = unpack_from("<II", content, PAYLOAD_AT)
    start = ((content[SETUP_SECTS_AT] or 4) + 1) * 512 + offset
    if not length or start + length > len(content):
        raise CannotRun(f"{image} is truncated: {start + length - len(content)} bytes of the kernel are missing")
    return content[start : start + length]


def decompress(image: str, packed: bytes) -> bytes:
    """Undo whichever compression the kernel was built with."""
    for magic, name, unpack in FORMATS:
        if packed.startswith(magic):
            try:
                content = unpack(packed)
            except ImportError as error:
                raise CannotRun(
                    f"{image} is compressed with {name}: no {error.name}", hint=f"pip install {error.name}"
                ) from None
            except CannotRun:
                raise
            except Exception as error:
                raise CannotRun(f"{image} is damaged: its {name} data cannot be unpacked ({error})") from error
            if content[:4] != b"\x7fELF":
                raise CannotRun(f"{image} is damaged: there is no ELF in it")
            return content
    raise CannotRun(f"{image} has a compression that unikvm does not know: {packed[:6].hex()}")


def _whole(decompressor: Any, packed: bytes) -> bytes:
    """All that a stream holds; what the kernel's build appended to it is left."""
    content: bytes = decompressor.decompress(packed)
    if not decompressor.eof:
        raise ValueError("it ends early")
    return content


def _gzip(packed: bytes) -> bytes:
    import zlib

    return _whole(zlib.decompressobj(wbits=31), packed)


def _bzip2(packed: bytes) -> bytes:
    import bz2

    return _whole(bz2.BZ2Decompressor(), packed)


def _lzma(packed: bytes) -> bytes:
    import lzma

    return _whole(lzma.LZMADecompressor(), packed)


def _zstd(packed: bytes) -> bytes:
    import zstandard

    return _whole(zstandard.ZstdDecompressor().decompressobj(), packed)


def _lz4(packed: bytes) -> bytes:
    """The legacy frame format: blocks with their length before them; the image's size in 4 bytes ends it."""
    import lz4.block

    blocks, at = [], len(LZ4_MAGIC)
    while at + 4 < len(packed):
        size = unpack_from("<I", packed, at)[0]
        at += 4
        if packed[at - 4 : at] == LZ4_MAGIC:
            continue
        if at + size > len(packed):
            raise ValueError("a block ends beyond the data")
        blocks.append(lz4.block.decompress(packed[at : at + size], uncompressed_size=LZ4_CHUNK))
        at += size
    return b"".join(blocks)


def _lzo(packed: bytes) -> bytes:
    import shutil
    import subprocess

    if not shutil.which("lzop"):
        raise CannotRun("the kernel is compressed with LZO: lzop is missing", hint="install the package lzop")
    # The size of the image follows the data; lzop warns of it, and gives what it unpacked.
    return subprocess.run(["lzop", "-dc"], input=packed, capture_output=True, check=False).stdout


FORMATS = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\xfd7zXZ\0", "xz", _lzma),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (LZ4_MAGIC, "lz4", _lz4),
    (b"\x89LZO\0\r\n\x1a\n", "lzo", _lzo),
)


def has_pvh_note(elf: bytes) -> bool:
    """Whether an ELF64 has the note that names its PVH entry."""
    if elf[4:5] != b"\x02":
        return False
    table, entry_size, count = unpack_from("<Q", elf, 32)[0], *unpack_from("<HH", elf, 54)
    for at in range(table, table + entry_size * count, entry_size):
        if unpack_from("<I", elf, at)[0] == 4 and _note_of(
            elf[unpack_from("<Q", elf, at + 8)[0] :][: unpack_from("<Q", elf, at + 32)[0]]
        ):
            return True
    return False


def _note_of(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = unpack_from("<III", notes, at)
        if kind == XEN_ELFNOTE_PHYS32_ENTRY and notes[at + 12 : at + 15] == b"Xen":
            return True
        at += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return False
