# SPDX-License-Identifier: GPL-2.0-only
"""Just enough of ELF for executables: header, program headers, notes (System V gABI, chapters 4 and 5).

Not pyelftools: loading it takes longer than loading a kernel.
"""

from __future__ import annotations

from struct import iter_unpack, unpack_from

from unikvm.boot.image import Image, Segment
from unikvm.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


MAGIC = b"\x7fELF"
_CLASS32, _CLASS64 = 1, 2
_LITTLE_ENDIAN = 1
_ET_EXEC, _ET_DYN = 2, 3
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_NOTE = 1, 4
_MAX_PROGRAM_HEADERS = 256
_MAX_NOTES = 1 << 16  # bytes


class Elf(Record):
    """`segments` carry physical addresses, `spans` the virtual [start, end) of each segment beside them."""

    bits: int
    entry: int
    segments: tuple[Segment, ...]
    virtual: tuple[int, ...]
    notes: tuple[tuple[int, int], ...]  # (offset, size) in the file

    def physical(self, address: int) -> int:
        """The physical address that virtual `address` is loaded to; itself when it is in no segment."""
        for start, segment in zip(self.virtual, self.segments, strict=True):
            if start <= address < start + segment.size:
                return address - start + segment.address
        return address


def parse(image: Image) -> Elf:
    """Read the headers of an x86 executable. CannotRun when it is something else, truncated or corrupt."""
    head = image.pread(64, 0)
    if len(head) < 52 or not head.startswith(MAGIC):
        raise image.bad("it is truncated: no ELF header" if head.startswith(MAGIC) else "it is not an ELF file")
    bits = {_CLASS32: 32, _CLASS64: 64}.get(head[4], 0)
    kind, machine = unpack_from("<HH", head, 16)
    if not bits or head[5] != _LITTLE_ENDIAN or machine not in (_EM_386, _EM_X86_64):
        raise image.bad("it is not for x86", "unikvm runs x86 guests only")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise image.bad(f"it is not an executable (ELF type {kind})")
    if bits == 64:
        if len(head) < 64:
            raise image.bad("it is truncated: no ELF header")
        entry, phoff = unpack_from("<QQ", head, 24)
        phentsize, phnum = unpack_from("<HH", head, 54)
    else:
        entry, phoff = unpack_from("<II", head, 24)
        phentsize, phnum = unpack_from("<HH", head, 42)
    if phentsize != (56 if bits == 64 else 32) or not 0 < phnum <= _MAX_PROGRAM_HEADERS:
        raise image.bad("it is corrupt: it has no sane program headers")
    table = image.pread(phentsize * phnum, phoff)
    if len(table) != phentsize * phnum:
        raise image.bad("it is truncated: its program headers are beyond its end")
    parsed = _collect(bits, entry, table)
    ends = [(s.offset + s.file_size) for s in parsed.segments] + [sum(note) for note in parsed.notes]
    if any(end > image.size for end in ends):
        raise image.bad(f"it is truncated or corrupt: it should have {max(ends)} bytes, it has {image.size}")
    return parsed


def _collect(bits: int, entry: int, table: bytes) -> Elf:
    segments, virtual, notes = [], [], []
    for fields in iter_unpack("<IIQQQQQQ" if bits == 64 else "<IIIIIIII", table):
        if bits == 64:
            kind, _flags, offset, vaddr, paddr, file_size, size, _align = fields
        else:
            kind, offset, vaddr, paddr, file_size, size, _flags, _align = fields
        if kind == _PT_LOAD and size:
            segments.append(Segment(paddr, size, offset, file_size))
            virtual.append(vaddr)
        elif kind == _PT_NOTE:
            notes.append((offset, file_size))
    return Elf(bits, entry, tuple(segments), tuple(virtual), tuple(notes))


def notes(image: Image, elf: Elf) -> Iterator[tuple[bytes, int, bytes]]:
    """The (name, type, description) of each note. A malformed one ends its segment's notes."""
    for offset, size in elf.notes:
        data = image.pread(min(size, _MAX_NOTES), offset)
        at = 0
        while at + 12 <= len(data):
            name_size, desc_size, kind = unpack_from("<III", data, at)
            name_at = at + 12
            desc_at = name_at + -(-name_size // 4) * 4
            if desc_at + desc_size > len(data):
                break
            yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[desc_at : desc_at + desc_size]
            at = desc_at + -(-desc_size // 4) * 4
