# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from struct import unpack_from

import pytest

from unikvm.arch.x86_64 import acpi, aml, layout
from unikvm.arch.x86_64.topology import Topology
from unikvm.memory import GuestMemory

GIB = 1 << 30
FULL = acpi.AcpiConfig(
    cpus=8, memory=5 * GIB, virtio_mmio=8, virtio_mmio_edge=False, serial=True, i8042=True, pvpanic=True
)
BARE = acpi.AcpiConfig(cpus=1, memory=1 << 20, pci=False, rtc=False)
GROWING = acpi.AcpiConfig(cpus=2, memory=GIB, topology=Topology(sockets=3, cores=85), plug_slots=True)
CONFIGS = [
    FULL,
    BARE,
    GROWING,
    acpi.AcpiConfig(cpus=2, memory=GIB),
    acpi.AcpiConfig(cpus=255, memory=GIB, topology=Topology(sockets=5, cores=3, threads=17)),
    acpi.AcpiConfig(cpus=1, memory=GIB, pci=False, topology=Topology(cores=2)),
    acpi.AcpiConfig(cpus=1, memory=GIB, plug_slots=True),
    acpi.AcpiConfig(cpus=2, memory=5 * GIB, serial=True, firmware=True),
]


def tables(blob: bytes) -> dict[str, bytes]:
    """Walk from the RSDP as a guest does; every checksum is checked."""

    def at(address: int) -> bytes:
        offset = address - layout.ACPI
        assert 0 < offset < len(blob)
        table = blob[offset : offset + unpack_from("<I", blob, offset + 4)[0]]
        if not table.startswith(b"FACS"):
            assert sum(table) & 0xFF == 0
        return table

    assert blob[:8] == b"RSD PTR "
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0
    rsdt, length, xsdt = unpack_from("<IIQ", blob, 16)
    assert length == 36
    roots = at(rsdt), at(xsdt)
    addresses = [a for (a,) in (unpack_from("<Q", roots[1], i) for i in range(36, len(roots[1]), 8))]
    assert addresses == [a for (a,) in (unpack_from("<I", roots[0], i) for i in range(36, len(roots[0]), 4))]
    found = [*roots, *(at(address) for address in addresses)]
    fadt = at(addresses[0])
    facs, dsdt = unpack_from("<II", fadt, 36)
    assert facs % 64 == 0
    assert unpack_from("<Q", fadt, 140)[0] == dsdt
    return {table[:4].decode(): table for table in [*found, at(facs), at(dsdt)]}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_guest_finds_every_table(config: acpi.AcpiConfig) -> None:
    memory = GuestMemory([(0, 1 << 20)])
    assert acpi.install(memory, config) == layout.ACPI
    found = tables(memory.read(layout.ACPI, layout.ACPI_END - layout.ACPI))
    memory.close()
    assert set(found) == {"RSDT", "XSDT", "FACP", "FACS", "APIC", "DSDT"} | (
        {"MCFG"} if config.pci and not config.firmware else set()
    )


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (package acpica-tools) is not installed")
@pytest.mark.parametrize("config", CONFIGS)
def test_iasl_reads_and_recompiles_them(config: acpi.AcpiConfig, tmp_path: Path) -> None:
    """Down to the last byte: only checksum and creator (bytes 9 and 28-35) are iasl's own."""
    for name, table in tables(acpi.build(config)).items():
        if config is GROWING and name == "APIC":
            continue  # this iasl does not know bit 1 of an x2APIC's flags
        source = tmp_path / f"{name}.dat"
        source.write_bytes(table)
        disassembled = run("iasl", "-d", source)
        assert "Error" not in disassembled
        compiled = run("iasl", "-tc", source.with_suffix(".dsl"))
        assert "0 Errors, 0 Warnings, 0 Remarks" in compiled
        again = source.with_suffix(".aml").read_bytes()
        changed = {i for i, (a, b) in enumerate(zip(table, again, strict=True)) if a != b}
        assert changed <= {9, *range(28, 36)}


def run(*command: object) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_fadt_registers() -> None:
    fadt = acpi.fadt_table(FULL, 0xE0040, 0xE0400)
    assert len(fadt) == 276
    assert unpack_from("<H", fadt, 46)[0] == layout.SCI_IRQ
    assert unpack_from("<I", fadt, 48)[0] == 0  # no SMI command: ACPI mode is on
    assert unpack_from("<II", fadt, 56) == (layout.PM1A_EVENT, 0)
    assert unpack_from("<I", fadt, 64)[0] == layout.PM1A_CONTROL
    assert fadt[91] == 0  # no PM timer
    assert unpack_from("<I", fadt, 112)[0] & 1 << 10
    assert unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, layout.RESET_REGISTER, layout.RESET_VALUE)


@pytest.mark.parametrize(("rtc", "i8042"), [(True, True), (False, False)])
def test_what_the_fadt_says_is_missing(rtc: bool, i8042: bool) -> None:
    fadt = acpi.fadt_table(BARE.replace(rtc=rtc, i8042=i8042), 0, 0)
    boot_arch = unpack_from("<H", fadt, 109)[0]
    assert bool(boot_arch & 1 << 1) is i8042
    assert bool(boot_arch & 1 << 5) is not rtc


def test_madt_has_every_cpu_and_the_overrides() -> None:
    madt = acpi.madt_table(FULL)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    assert [entry[3] for entry in entries if entry[0] == 0] == list(range(8))
    assert [unpack_from("<BIH", e, 3) for e in entries if e[0] == 2] == [(0, 2, 0), (9, 9, 0xD)]


def test_madt_lists_the_cpus_that_may_come() -> None:
    madt = acpi.madt_table(GROWING)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    xapic = [unpack_from("<BBI", e, 2) for e in entries if e[0] == 0]
    x2apic = [unpack_from("<III", e, 4) for e in entries if e[0] == 9]
    assert xapic[:3] == [(0, 0, 1), (1, 1, 1), (2, 2, 2)]  # enabled, or only online capable
    assert xapic[-1] == (169, 128 + 84, 2)
    assert x2apic[0] == (256, 2, 170)
    assert x2apic[-1] == (2 * 128 + 84, 2, 254)
    assert len(xapic) + len(x2apic) == 255
    assert [e for e in entries if e[0] == 10]  # the NMI of x2APICs
    assert [unpack_from("<BIH", e, 3) for e in entries if e[0] == 2][-1] == (10, 10, 0xD)


def test_nothing_grows_that_was_not_asked_for() -> None:
    plain = acpi.AcpiConfig(cpus=2, memory=GIB)
    assert b"ACPI0013" not in acpi.build(plain)
    assert b"_EJ0" not in acpi.build(plain)
    assert b"ACPI0013" in acpi.build(GROWING)


def test_mcfg_is_bounded() -> None:
    assert unpack_from("<QHBB", acpi.mcfg_table(), 44) == (layout.ECAM, 0, 0, layout.PCI_BUSES - 1)


@pytest.mark.parametrize("size", [0, 61, 62, 63, 64, 4091, 4092, 4093, 5000])
def test_aml_lengths(size: int) -> None:
    encoded = aml.pkg_length(bytes(size))
    extra = encoded[0] >> 6
    length = encoded[0] & 0x3F if not extra else encoded[0] & 0xF
    for i in range(extra):
        length |= encoded[1 + i] << (4 + 8 * i)
    assert length == len(encoded) == size + 1 + extra


def test_aml_terms() -> None:
    assert aml.integer(0) == b"\x00"
    assert aml.integer(1) == b"\x01"
    assert aml.integer(0x1234) == b"\x0b\x34\x12"
    assert aml.integer(1 << 40)[:1] == b"\x0e"
    assert aml.name_string("\\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert aml.name_string("\\") == b"\\\x00"
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
    with pytest.raises(ValueError, match="bad ACPI name"):
        aml.name_string("TOOLONG")
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
    with pytest.raises(ValueError, match="too many"):
        aml.pkg_length(bytes(1 << 28))
