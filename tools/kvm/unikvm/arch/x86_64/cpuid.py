# SPDX-License-Identifier: GPL-2.0-only
"""The CPUID of a vCPU: what KVM supports, plus what it leaves to the VMM (identity, topology,
paravirtualisation).

The guest sees one package of single-threaded cores; APIC ID = vCPU number. Leaves: Intel SDM vol. 2A, CPUID;
AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from unikvm.uapi.kvm import kvm_cpuid_entry2

_SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX, without loading uapi for it

# Leaf 1
_ECX_X2APIC = 1 << 21
_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31  # KVM leaves it out; without it guests look for no kvm-clock
_EDX_HTT = 1 << 28  # EBX[23:16] is valid
# Leaf 0x80000001
_ECX_CMP_LEGACY = 1 << 1

_LEVEL_SMT = 1
_LEVEL_CORE = 2
_CACHE_LEVEL3 = 3

KVM_LEAF = 0x4000_0000
KVM_FEATURES_LEAF = 0x4000_0001
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"


def build(
    supported: Sequence[kvm_cpuid_entry2], *, apic_id: int, cpus: int, tsc_deadline: bool
) -> list[kvm_cpuid_entry2]:
    """The entries for KVM_SET_CPUID2 of vCPU `apic_id` of `cpus`.

    `supported`: KVM_GET_SUPPORTED_CPUID, left unchanged. `tsc_deadline`: KVM_CAP_TSC_DEADLINE_TIMER is there
    (it is not in the supported leaves, because it needs the in-kernel local APIC).
    """
    if not supported:
        return []
    kind = type(supported[0])
    entries = [kind.from_buffer_copy(entry) for entry in supported if entry.function not in (0xB, 0x1F)]
    for entry in entries:
        if fix := _FIXES.get(entry.function):
            fix(entry, apic_id, cpus)
        if entry.function == 1 and tsc_deadline:
            entry.ecx |= _ECX_TSC_DEADLINE
    for leaf in (0xB, 0x1F):
        if any(entry.function == leaf for entry in supported) and _highest(supported) >= leaf:
            entries += _topology(kind, leaf, apic_id, cpus)
    if all(entry.function != KVM_LEAF for entry in entries):
        words = [int.from_bytes(KVM_SIGNATURE[i : i + 4], "little") for i in (0, 4, 8)]
        entries.append(kind(KVM_LEAF, 0, 0, KVM_FEATURES_LEAF, *words))
        if all(entry.function != KVM_FEATURES_LEAF for entry in entries):
            entries.append(kind(KVM_FEATURES_LEAF))
    return entries


def physical_address_bits(supported: Iterable[kvm_cpuid_entry2]) -> int:
    """MAXPHYADDR of the guest: leaf 0x80000008 EAX[7:0], 36 where there is no such leaf."""
    for entry in supported:
        if entry.function == 0x8000_0008:
            return int(entry.eax & 0xFF) or 36
    return 36


def _highest(supported: Sequence[kvm_cpuid_entry2]) -> int:
    return next((int(entry.eax) for entry in supported if entry.function == 0), 0)


def _id_bits(cpus: int) -> int:
    """Bits that an APIC ID needs."""
    return (cpus - 1).bit_length()


def _fix_features(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 1: identity and feature bits."""
    count = 1 << _id_bits(cpus)
    entry.ebx = entry.ebx & 0x0000_FFFF | count << 16 | apic_id << 24
    entry.ecx |= _ECX_HYPERVISOR | _ECX_X2APIC
    entry.edx = entry.edx | _EDX_HTT if cpus > 1 else entry.edx & ~_EDX_HTT


def _fix_intel_cache(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 4: EAX[25:14] IDs that share the cache, less 1; EAX[31:26] core IDs in the package, less 1."""
    if not entry.eax & 0x1F:
        return
    last_id = (1 << _id_bits(cpus)) - 1
    sharing = last_id if entry.eax >> 5 & 7 >= _CACHE_LEVEL3 else 0
    entry.eax = entry.eax & 0x3FFF | sharing << 14 | min(last_id, 0x3F) << 26


def _fix_amd_cache(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 0x8000001d: as leaf 4, without the core IDs."""
    if not entry.eax & 0x1F:
        return
    sharing = (1 << _id_bits(cpus)) - 1 if entry.eax >> 5 & 7 >= _CACHE_LEVEL3 else 0
    entry.eax = entry.eax & 0x3FFF | sharing << 14


def _fix_amd_features(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 0x80000001: CmpLegacy says that HTT counts cores, not threads."""
    if entry.ecx or entry.edx:
        entry.ecx = entry.ecx | _ECX_CMP_LEGACY if cpus > 1 else entry.ecx & ~_ECX_CMP_LEGACY


def _fix_amd_size(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 0x80000008: ECX[7:0] cores less 1, ECX[15:12] bits of the core ID."""
    entry.ecx = entry.ecx & ~0xF0FF | _id_bits(cpus) << 12 | cpus - 1


def _fix_amd_topology(entry: kvm_cpuid_entry2, apic_id: int, cpus: int) -> None:
    """Leaf 0x8000001e: APIC ID, core ID with one thread a core, node 0 of 1."""
    entry.eax, entry.ebx, entry.ecx, entry.edx = apic_id, apic_id & 0xFF, 0, 0


_FIXES = {
    1: _fix_features,
    4: _fix_intel_cache,
    0x8000_0001: _fix_amd_features,
    0x8000_0008: _fix_amd_size,
    0x8000_001D: _fix_amd_cache,
    0x8000_001E: _fix_amd_topology,
}


def _topology(kind: type[kvm_cpuid_entry2], leaf: int, apic_id: int, cpus: int) -> list[kvm_cpuid_entry2]:
    """Leaves 0xb and 0x1f: EAX shift to the next level, EBX CPUs at this level, ECX level number and type,
    EDX ID."""
    return [
        kind(leaf, 0, _SIGNIFICANT_INDEX, 0, 1, _LEVEL_SMT << 8, apic_id),
        kind(leaf, 1, _SIGNIFICANT_INDEX, _id_bits(cpus), cpus, 1 | _LEVEL_CORE << 8, apic_id),
        kind(leaf, 2, _SIGNIFICANT_INDEX, 0, 0, 2, apic_id),
    ]
