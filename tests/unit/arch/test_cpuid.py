# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from unikvm.arch.x86_64 import cpuid
from unikvm.uapi.kvm import kvm_cpuid_entry2 as Entry

INDEXED = 1


def supported() -> list[Entry]:
    """What an Intel and an AMD host offer, in one."""
    return [
        Entry(0, 0, 0, 0x1F, 0, 0, 0),
        Entry(1, 0, 0, 0x800F12, 0xFF00_0800, 0, 0x1000_0000),
        Entry(4, 0, INDEXED, 0x121, 0, 0, 0),
        Entry(4, 1, INDEXED, 0x163, 0, 0, 0),
        Entry(4, 2, INDEXED, 0, 0, 0, 0),
        Entry(0xB, 0, INDEXED, 0, 0, 0, 99),
        Entry(0x1F, 0, INDEXED, 0, 0, 0, 99),
        Entry(0x8000_0001, 0, 0, 0, 0, 1 << 22, 1),
        Entry(0x8000_0008, 0, 0, 0x3030, 0, 0x7001, 0),
        Entry(0x8000_001D, 3, INDEXED, 0x4163, 0, 0, 0),
        Entry(0x8000_001E, 0, 0, 9, 9, 9, 9),
        Entry(0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D),
        Entry(0x4000_0001, 0, 0, 0x100_7EFB, 0, 0, 0),
    ]


def find(entries: list[Entry], function: int, index: int = 0) -> Entry:
    (entry,) = [e for e in entries if (e.function, e.index) == (function, index)]
    return entry


def test_what_kvm_leaves_out() -> None:
    entries = cpuid.build(supported(), apic_id=0, cpus=1, tsc_deadline=True)
    leaf = find(entries, 1)
    assert leaf.ecx & 1 << 31  # hypervisor
    assert leaf.ecx & 1 << 24  # TSC deadline
    assert leaf.ecx & 1 << 21  # x2APIC
    assert leaf.ebx == 0x0001_0800  # one logical processor, the host's APIC ID gone
    assert not leaf.edx & 1 << 28  # HTT
    assert not find(cpuid.build(supported(), apic_id=0, cpus=1, tsc_deadline=False), 1).ecx & 1 << 24


def test_topology_of_the_third_of_six() -> None:
    entries = cpuid.build(supported(), apic_id=2, cpus=6, tsc_deadline=True)
    leaf = find(entries, 1)
    assert leaf.ebx >> 16 == 2 << 8 | 8
    assert leaf.edx & 1 << 28
    assert find(entries, 4, 0).eax >> 14 == 7 << 12  # eight core IDs, L1 not shared
    assert find(entries, 4, 1).eax >> 14 == 7 << 12 | 7  # L3 shared by all
    assert find(entries, 4, 2).eax == 0
    for leaf_number in (0xB, 0x1F):
        smt, core, end = (find(entries, leaf_number, i) for i in range(3))
        assert (smt.eax, smt.ebx, smt.ecx, smt.edx) == (0, 1, 0x100, 2)
        assert (core.eax, core.ebx, core.ecx, core.edx) == (3, 6, 0x201, 2)
        assert (end.eax, end.ebx, end.ecx, end.edx) == (0, 0, 2, 2)
    assert find(entries, 0x8000_0001).ecx == 1 << 22 | 2
    assert find(entries, 0x8000_0008).ecx == 3 << 12 | 5
    assert find(entries, 0x8000_001D, 3).eax == 7 << 14 | 0x163
    topology = find(entries, 0x8000_001E)
    assert (topology.eax, topology.ebx, topology.ecx, topology.edx) == (2, 2, 0, 0)


def test_the_input_stays_as_it_is() -> None:
    entries = supported()
    before = [bytes(entry) for entry in entries]
    cpuid.build(entries, apic_id=3, cpus=4, tsc_deadline=True)
    assert [bytes(entry) for entry in entries] == before


@pytest.mark.parametrize("drop", [(), (0x4000_0000,), (0x4000_0000, 0x4000_0001)])
def test_kvm_signature(drop: tuple[int, ...]) -> None:
    entries = [entry for entry in supported() if entry.function not in drop]
    built = cpuid.build(entries, apic_id=0, cpus=1, tsc_deadline=True)
    leaf = find(built, 0x4000_0000)
    words = (leaf.ebx, leaf.ecx, leaf.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == cpuid.KVM_SIGNATURE
    assert leaf.eax == 0x4000_0001
    find(built, 0x4000_0001)


def test_no_leaf_beyond_the_highest() -> None:
    entries = [Entry(0, 0, 0, 0xA), Entry(1), Entry(0xB, 0, INDEXED)]
    assert all(e.function != 0xB for e in cpuid.build(entries, apic_id=0, cpus=2, tsc_deadline=True))
    assert cpuid.build([], apic_id=0, cpus=1, tsc_deadline=True) == []


def test_physical_address_bits() -> None:
    assert cpuid.physical_address_bits(supported()) == 0x30
    assert cpuid.physical_address_bits([Entry(1)]) == 36
