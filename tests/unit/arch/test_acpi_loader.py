# SPDX-License-Identifier: GPL-2.0-only
"""The script for firmware: executed here as SeaBIOS and OVMF do, it gives the tables that we would have placed."""

from __future__ import annotations

from struct import unpack_from

import pytest

from unikvm.arch.x86_64 import acpi, acpi_loader, layout

GIB = 1 << 30
CONFIGS = [
    acpi.AcpiConfig(cpus=1, memory=GIB, firmware=True, serial=True),
    acpi.AcpiConfig(cpus=8, memory=5 * GIB, pvpanic=True, i8042=True),
]


def execute(files: dict[str, bytes], places: dict[str, int]) -> dict[str, bytearray]:
    """Load, relocate and sum up. Every command is within its file."""
    blobs: dict[str, bytearray] = {}
    script = files[acpi_loader.SCRIPT]
    assert len(script) % 128 == 0

    def name(at: int) -> str:
        return script[at : at + 56].rstrip(b"\0").decode()

    for at in range(0, len(script), 128):
        kind = unpack_from("<I", script, at)[0]
        if kind == 1:
            align, zone = unpack_from("<IB", script, at + 60)
            assert places[name(at + 4)] % align == 0
            assert zone == (2 if name(at + 4) == acpi_loader.RSDP else 1)
            blobs[name(at + 4)] = bytearray(files[name(at + 4)])
        elif kind == 2:
            offset, size = unpack_from("<IB", script, at + 116)
            blob = blobs[name(at + 4)]
            target = int.from_bytes(blob[offset : offset + size], "little")
            assert target < len(blobs[name(at + 60)])
            blob[offset : offset + size] = (target + places[name(at + 60)]).to_bytes(size, "little")
        else:
            assert kind == 3
            offset, start, length = unpack_from("<III", script, at + 60)
            blob = blobs[name(at + 4)]
            assert start <= offset < start + length <= len(blob)
            blob[offset] = (blob[offset] - sum(blob[start : start + length])) & 0xFF
    return blobs


@pytest.mark.parametrize("config", CONFIGS)
def test_firmware_can_do_what_we_do(config: acpi.AcpiConfig) -> None:
    built = acpi.build(config)
    files = acpi_loader.files(config)
    places = {acpi_loader.RSDP: int(layout.ACPI), acpi_loader.TABLES: layout.ACPI + 64}
    blobs = execute(files, places)
    assert blobs[acpi_loader.RSDP] == built[:36]
    assert blobs[acpi_loader.TABLES] == built[64:]


def test_elsewhere_every_sum_is_right() -> None:
    files = acpi_loader.files(CONFIGS[0])
    places = {acpi_loader.RSDP: 0xF5C80, acpi_loader.TABLES: 0x0FFF_F000}
    blobs = execute(files, places)
    rsdp, tables = blobs[acpi_loader.RSDP], blobs[acpi_loader.TABLES]
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    xsdt = unpack_from("<Q", rsdp, 24)[0] - 0x0FFF_F000
    length = unpack_from("<I", tables, xsdt + 4)[0]
    for at in range(xsdt + 36, xsdt + length, 8):
        table = unpack_from("<Q", tables, at)[0] - 0x0FFF_F000
        size = unpack_from("<I", tables, table + 4)[0]
        assert sum(tables[table : table + size]) & 0xFF == 0
