# SPDX-License-Identifier: GPL-2.0-only
"""Offsets of struct members from a kernel's BTF (Linux: Documentation/bpf/btf.rst), of vmlinux and of its modules.

A module's BTF goes on where vmlinux's ends: its types and strings are numbered from there.
"""

from __future__ import annotations

from struct import error, unpack_from

from unikvm.errors import CannotRun

MAGIC = 0xEB9F
HEADER = 24  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len

KIND_INT, KIND_ARRAY, KIND_STRUCT, KIND_UNION, KIND_ENUM = 1, 3, 4, 5, 6
KIND_FUNC_PROTO, KIND_VAR, KIND_DATASEC, KIND_DECL_TAG, KIND_ENUM64 = 13, 14, 15, 17, 19
# Bytes after the common 12 of each kind: fixed, and per element.
EXTRA = {KIND_INT: 4, KIND_ARRAY: 12, KIND_VAR: 4, KIND_DECL_TAG: 4}
PER_ELEMENT = {KIND_STRUCT: 12, KIND_UNION: 12, KIND_ENUM: 8, KIND_FUNC_PROTO: 8, KIND_DATASEC: 12, KIND_ENUM64: 12}


class Btf:
    """One .BTF section; `base_strings` is the length of the string table that it goes on from."""

    def __init__(self, data: bytes, base_strings: bytes = b"") -> None:
        if len(data) < HEADER or unpack_from("<H", data)[0] != MAGIC:
            raise CannotRun("the kernel's BTF is malformed")
        header, types, types_size, strings, strings_size = unpack_from("<IIIII", data, 4)
        self._types = data[header + types : header + types + types_size]
        self.strings = base_strings + data[header + strings : header + strings + strings_size]

    def _string(self, offset: int) -> bytes:
        return self.strings[offset : self.strings.index(b"\0", offset)]

    def member_offset(self, struct: str, member: str) -> int | None:
        """Bytes from the start of `struct` to its direct `member`; None where there is no such thing."""
        try:
            return self._member_offset(struct, member)
        except (error, ValueError):  # it ends early; a string that does not end
            raise CannotRun("the kernel's BTF is malformed") from None

    def _member_offset(self, struct: str, member: str) -> int | None:
        types, at = self._types, 0
        wanted, inside = struct.encode(), member.encode()
        while at + 12 <= len(types):
            name, info = unpack_from("<II", types, at)
            kind, count, bitfields = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
            if kind == KIND_STRUCT and name and self._string(name) == wanted:
                for member_at in range(at + 12, at + 12 + 12 * count, 12):
                    member_name, _, bits = unpack_from("<III", types, member_at)
                    if member_name and self._string(member_name) == inside:
                        return int(bits & 0xFF_FFFF if bitfields else bits) // 8
            at += 12 + EXTRA.get(kind, 0) + PER_ELEMENT.get(kind, 0) * count
        return None


def section(path: str, content: bytes) -> bytes:
    """The .BTF section of an ELF; CannotRun where it has none."""
    import io

    from elftools.elf.elffile import ELFFile

    found = ELFFile(io.BytesIO(content)).get_section_by_name(".BTF")
    if found is None:
        raise CannotRun(f"{path} has no BTF")
    data: bytes = found.data()
    return data
