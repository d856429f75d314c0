# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from unikvm.arch.x86_64 import cpuid
from unikvm.arch.x86_64.topology import Topology
from unikvm.uapi.kvm import kvm_cpuid_entry2 as Entry

INDEXED = 1
SIX = Topology(cores=6)
INTEL = 0x756E_6547
AMD = 0x6874_7541


def supported(vendor: int = INTEL) -> list[Entry]:
    """What an Intel and an AMD host offer, in one."""
    return [
        Entry(0, 0, 0, 0x1F, vendor, 0, 0),
        Entry(1, 0, 0, 0x800F12, 0xFF00_0800, 0, 0x1000_0000),
        Entry(4, 0, INDEXED, 0x121, 0, 0, 0),
        Entry(4, 1, INDEXED, 0x163, 0, 0, 0),
        Entry(4, 2, INDEXED, 0, 0, 0, 0),
        Entry(0xB, 0, INDEXED, 0, 0, 0, 99),
        Entry(0x1F, 0, INDEXED, 0, 0, 0, 99),
        Entry(0x8000_0000, 0, 0, 0x8000_001E, 0, 0, 0),
        Entry(0x8000_0001, 0, 0, 0, 0, 0, 1),
        Entry(0x8000_0005, 0, 0, 0, 0, 0x2008_0140, 0x4004_0140),
        Entry(0x8000_0006, 0, 0, 0, 0, 0x0200_6140, 0x0040_9140),
        Entry(0x8000_0008, 0, 0, 0x3030, 0, 0x7001, 0),
        Entry(0x8000_001D, 3, INDEXED, 0x4163, 0, 0, 0),
        Entry(0x8000_001E, 0, 0, 9, 9, 9, 9),
        Entry(0x8000_0026, 0, INDEXED, 9, 9, 9, 9),
        Entry(0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D),
        Entry(0x4000_0001, 0, 0, 0x100_7EFB, 0, 0, 0),
    ]


def find(entries: list[Entry], function: int, index: int = 0) -> Entry:
    (entry,) = [e for e in entries if (e.function, e.index) == (function, index)]
    return entry


def build(topology: Topology, index: int = 0, vendor: int = INTEL) -> list[Entry]:
    entries = cpuid.build(supported(vendor), topology=topology, tsc_deadline=True)
    cpuid.personalise(entries, topology, index)
    return entries


def test_what_kvm_leaves_out() -> None:
    leaf = find(build(Topology()), 1)
    assert leaf.ecx & 1 << 31  # hypervisor
    assert leaf.ecx & 1 << 24  # TSC deadline
    assert leaf.ecx & 1 << 21  # x2APIC
    assert leaf.ebx == 0x0001_0800  # one logical processor, the host's APIC ID gone
    assert not leaf.edx & 1 << 28  # HTT
    without = cpuid.build(supported(), topology=Topology(), tsc_deadline=False)
    assert not find(without, 1).ecx & 1 << 24
    assert not [e for e in without if e.function == 0x8000_0026]  # the host's topology


def test_topology_of_the_third_of_six() -> None:
    entries = build(SIX, 2)
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
    assert find(entries, 0x8000_0001).ecx == 2
    assert find(entries, 0x8000_0008).ecx == 3 << 12 | 5
    assert find(entries, 0x8000_001D, 3).eax == 7 << 14 | 0x163
    topology = find(entries, 0x8000_001E)
    assert (topology.eax, topology.ebx, topology.ecx, topology.edx) == (2, 2, 0, 0)


def test_ids_have_a_field_for_each_level() -> None:
    """SDM vol. 3A §9.9.1: three cores take two bits, so there are gaps."""
    topology = Topology(sockets=2, cores=3, threads=2)
    assert [topology.apic_id(i) for i in range(12)] == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    assert topology.last_id == 13
    assert Topology(cores=255).last_id == 254
    assert Topology(sockets=3, cores=85).last_id == 2 << 7 | 84


def test_threads_on_intel() -> None:
    """SDM vol. 2A: leaf 4 EAX[25:14] and [31:26], leaf 0xb EAX[4:0], EBX[15:0]."""
    topology = Topology(sockets=2, cores=2, threads=2)
    entries = build(topology, 5)  # socket 1, core 0, thread 1
    assert find(entries, 1).ebx >> 16 == 5 << 8 | 4
    assert find(entries, 4, 0).eax >> 14 == 1 << 12 | 1  # two core IDs, L1 shared by two threads
    assert find(entries, 4, 1).eax >> 14 == 1 << 12 | 3
    for leaf_number in (0xB, 0x1F):
        smt, core = (find(entries, leaf_number, i) for i in range(2))
        assert (smt.eax, smt.ebx, smt.ecx, smt.edx) == (1, 2, 0x100, 5)
        assert (core.eax, core.ebx, core.ecx, core.edx) == (2, 4, 0x201, 5)
    assert not find(entries, 0x8000_0001).ecx & cpuid.ECX_TOPOEXT


def test_threads_on_amd() -> None:
    """APM vol. 3 E.4.15-16, where KVM does not offer the topology extensions: the caches are the older leaves'."""
    topology = Topology(sockets=2, cores=2, threads=2)
    host = [e for e in supported(AMD) if e.function != 0x8000_001D]
    entries = cpuid.build(host, topology=topology, tsc_deadline=True)
    cpuid.personalise(entries, topology, 7)
    assert find(entries, 0x8000_0001).ecx == cpuid.ECX_TOPOEXT | 2
    ids = find(entries, 0x8000_001E)
    assert (ids.eax, ids.ebx, ids.ecx) == (7, 1 << 8 | 1, 1)
    assert find(entries, 0x8000_0008).ecx == 2 << 12 | 3
    caches = [find(entries, 0x8000_001D, i) for i in range(5)]
    sizes = [((e.ebx >> 22) + 1) * ((e.ebx & 0xFFF) + 1) * (e.ecx + 1) >> 10 if e.eax & 0x1F else 0 for e in caches]
    assert sizes == [32, 64, 512, 8192, 0]
    assert [(e.eax & 0x1F, e.eax >> 5 & 7, (e.eax >> 14 & 0xFFF) + 1) for e in caches[:4]] == [
        (1, 1, 2), (2, 1, 2), (3, 2, 2), (3, 3, 4),
    ]  # fmt: skip


def test_an_amd_host_with_the_extensions_keeps_its_caches() -> None:
    host = [*supported(AMD), Entry(0x8000_001D, 0, INDEXED, 0x4121, 0x1C0_003F, 63, 0)]
    entries = cpuid.build(host, topology=Topology(threads=2), tsc_deadline=True)
    assert find(entries, 0x8000_001D).eax == 1 << 14 | 0x121
    assert find(entries, 0x8000_001D).ecx == 63


def test_more_ids_than_an_xapic_has() -> None:
    entries = build(Topology(sockets=3, cores=85), 254)
    assert find(entries, 0xB, 1).edx == 2 << 7 | 84
    assert find(entries, 0x1F, 0).edx == 2 << 7 | 84
    assert find(entries, 1).ebx >> 24 == (2 << 7 | 84) & 0xFF
    assert find(entries, cpuid.KVM_FEATURES_LEAF).eax & 1 << 15  # interrupts can be sent there
    assert not find(build(Topology(cores=255)), cpuid.KVM_FEATURES_LEAF).eax & 1 << 15


def test_the_input_stays_as_it_is() -> None:
    entries = supported(AMD)
    before = [bytes(entry) for entry in entries]
    cpuid.build(entries, topology=Topology(cores=2, threads=2), tsc_deadline=True)
    assert [bytes(entry) for entry in entries] == before


@pytest.mark.parametrize("drop", [(), (0x4000_0000,), (0x4000_0000, 0x4000_0001)])
def test_kvm_signature(drop: tuple[int, ...]) -> None:
    entries = [entry for entry in supported() if entry.function not in drop]
    built = cpuid.build(entries, topology=Topology(), tsc_deadline=True)
    leaf = find(built, 0x4000_0000)
    words = (leaf.ebx, leaf.ecx, leaf.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == cpuid.KVM_SIGNATURE
    assert leaf.eax == 0x4000_0001
    find(built, 0x4000_0001)


def test_no_leaf_beyond_the_highest() -> None:
    entries = [Entry(0, 0, 0, 0xA), Entry(1), Entry(0xB, 0, INDEXED)]
    built = cpuid.build(entries, topology=Topology(cores=2), tsc_deadline=True)
    assert all(e.function != 0xB for e in built)
    assert cpuid.build([], topology=Topology(), tsc_deadline=True) == []


def test_physical_address_bits() -> None:
    assert cpuid.physical_address_bits(supported()) == 0x30
    assert cpuid.physical_address_bits([Entry(1)]) == 36
