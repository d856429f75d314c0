# SPDX-License-Identifier: GPL-2.0-only
"""ACPI tables for firmware, which places them itself: the tables, and a script for their pointers and checksums.

The script is QEMU's linker/loader (hw/acpi/bios-linker-loader.h), which SeaBIOS and OVMF execute.
"""

from __future__ import annotations

from struct import pack, unpack_from

from unikvm.arch.x86_64 import acpi, layout

RSDP, TABLES, SCRIPT = "etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_F_SEGMENT = 1, 2
_ENTRY_SIZE = 128

_RSDP_SIZE = 36
_RSDP_CHECKSUM, _RSDP_OLD_SIZE, _RSDP_RSDT, _RSDP_XSDT, _RSDP_EXTENDED_CHECKSUM = 8, 20, 16, 24, 32
_LENGTH, _CHECKSUM, _HEADER_SIZE = 4, 9, 36
_FADT_POINTERS = ((36, 4), (40, 4), (132, 8), (140, 8))  # FIRMWARE_CTRL, DSDT, and their 64-bit twins
_FACS_SIZE = 64


class _Loader:
    """The tables as `acpi.build` made them, from which the addresses are taken back."""

    def __init__(self, built: bytes) -> None:
        self.rsdp = bytearray(built[:_RSDP_SIZE])
        self.tables = bytearray(built[64:])
        self.script = bytearray()
        self._base = layout.ACPI + 64
        self._seen: set[int] = set()

    def run(self) -> None:
        self._command(_ALLOCATE, pack("<56sIB", RSDP.encode(), 16, _ZONE_F_SEGMENT))
        self._command(_ALLOCATE, pack("<56sIB", TABLES.encode(), 64, _ZONE_HIGH))
        for at, size in ((_RSDP_RSDT, 4), (_RSDP_XSDT, 8)):
            root = self._relocate(RSDP, self.rsdp, at, size)
            entries = range(root + _HEADER_SIZE, root + self._length(root), size)
            self._tables_of(root, [(entry, size) for entry in entries])
        self._checksum(RSDP, self.rsdp, _RSDP_CHECKSUM, 0, _RSDP_OLD_SIZE)
        self._checksum(RSDP, self.rsdp, _RSDP_EXTENDED_CHECKSUM, 0, _RSDP_SIZE)

    def _tables_of(self, table: int, pointers: list[tuple[int, int]]) -> None:
        """`table` and what it points to; a checksum comes after all that it covers."""
        self._seen.add(table)
        for at, size in pointers:
            target = self._relocate(TABLES, self.tables, at, size)
            if target >= 0 and target not in self._seen and self.tables[target : target + 4] != b"FACS":
                is_fadt = self.tables[target : target + 4] == b"FACP"
                self._tables_of(target, [(target + at, size) for at, size in _FADT_POINTERS] if is_fadt else [])
        self._checksum(TABLES, self.tables, table + _CHECKSUM, table, self._length(table))

    def _length(self, table: int) -> int:
        return int(unpack_from("<I", self.tables, table + _LENGTH)[0])

    def _relocate(self, name: str, data: bytearray, at: int, size: int) -> int:
        """Make the address at `at` relative to the tables and let firmware add where they are; -1 for none."""
        address = int.from_bytes(data[at : at + size], "little")
        if not address:
            return -1
        target = address - self._base
        data[at : at + size] = target.to_bytes(size, "little")
        self._command(_ADD_POINTER, pack("<56s56sIB", name.encode(), TABLES.encode(), at, size))
        return target

    def _checksum(self, name: str, data: bytearray, at: int, start: int, length: int) -> None:
        data[at] = 0
        self._command(_ADD_CHECKSUM, pack("<56sIII", name.encode(), at, start, length))

    def _command(self, kind: int, operands: bytes) -> None:
        self.script += (pack("<I", kind) + operands).ljust(_ENTRY_SIZE, b"\0")


def files(config: acpi.AcpiConfig) -> dict[str, bytes]:
    """The fw_cfg files with the tables of `config` and the script."""
    loader = _Loader(acpi.build(config))
    loader.run()
    return {RSDP: bytes(loader.rsdp), TABLES: bytes(loader.tables), SCRIPT: bytes(loader.script)}
