# SPDX-License-Identifier: GPL-2.0-only
"""The CPUID of a vCPU: what KVM supports, plus what it leaves to the VMM (identity, topology, caches' sharing,
paravirtualisation).

Leaves: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from unikvm.arch.x86_64.topology import XAPIC_IDS, Topology

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
ECX_TOPOEXT = 1 << 22  # leaves 0x8000001d and 0x8000001e are valid

_LEVEL_SMT = 1
_LEVEL_CORE = 2
_CACHE_LEVEL3 = 3
_TOPOLOGY_LEAVES = (0xB, 0x1F)
_AMD_CACHES = 0x8000_001D
_AMD_IDS = 0x8000_001E
_AMD_TOPOLOGY = 0x8000_0026  # the host's own, where KVM passes it on: leaf 0xb says the guest's

KVM_LEAF = 0x4000_0000
KVM_FEATURES_LEAF = 0x4000_0001
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"
_MSI_EXT_DEST_ID = 1 << 15  # KVM_FEATURE_MSI_EXT_DEST_ID: 15 bits of destination in an MSI address


def build(supported: Sequence[kvm_cpuid_entry2], *, topology: Topology, tsc_deadline: bool) -> list[kvm_cpuid_entry2]:
    """The entries for KVM_SET_CPUID2 of vCPU 0; `personalise` makes them another's.

    `supported`: KVM_GET_SUPPORTED_CPUID, left unchanged. `tsc_deadline`: KVM_CAP_TSC_DEADLINE_TIMER is there
    (it is not in the supported leaves, because it needs the in-kernel local APIC).
    """
    if not supported:
        return []
    kind = type(supported[0])
    replaced = (*_TOPOLOGY_LEAVES, _AMD_TOPOLOGY)
    entries = [kind.from_buffer_copy(entry) for entry in supported if entry.function not in replaced]
    if topology.threads > 1 and is_amd(supported):
        from unikvm.arch.x86_64.amdcaches import describe_threads

        entries = describe_threads(entries)
    for entry in entries:
        if fix := _FIXES.get(entry.function):
            fix(entry, topology)
        if entry.function == 1 and tsc_deadline:
            entry.ecx |= _ECX_TSC_DEADLINE
    for leaf in _TOPOLOGY_LEAVES:
        if any(entry.function == leaf for entry in supported) and _highest(supported) >= leaf:
            entries += _topology(kind, leaf, topology)
    if all(entry.function != KVM_LEAF for entry in entries):
        words = [int.from_bytes(KVM_SIGNATURE[i : i + 4], "little") for i in (0, 4, 8)]
        entries.append(kind(KVM_LEAF, 0, 0, KVM_FEATURES_LEAF, *words))
        if all(entry.function != KVM_FEATURES_LEAF for entry in entries):
            entries.append(kind(KVM_FEATURES_LEAF))
    if topology.last_id >= XAPIC_IDS:
        for entry in entries:
            if entry.function == KVM_FEATURES_LEAF:
                entry.eax |= _MSI_EXT_DEST_ID
    personalise(entries, topology, 0)
    return entries


def personalise(entries: Iterable[kvm_cpuid_entry2], topology: Topology, index: int) -> None:
    """Put what only vCPU `index` has into `entries`, in place: its APIC ID, wherever it is told."""
    apic_id = topology.apic_id(index)
    for entry in entries:
        function = entry.function
        if function == 1:
            entry.ebx = entry.ebx & 0x00FF_FFFF | (apic_id & 0xFF) << 24
        elif function in _TOPOLOGY_LEAVES:
            entry.edx = apic_id
        elif function == _AMD_IDS:
            socket, rest = divmod(index, topology.package)
            entry.eax = apic_id
            entry.ebx = topology.threads - 1 << 8 | rest // topology.threads & 0xFF
            entry.ecx = socket & 0xFF  # its node, of which each socket has one


def physical_address_bits(supported: Iterable[kvm_cpuid_entry2]) -> int:
    """MAXPHYADDR of the guest: leaf 0x80000008 EAX[7:0], 36 where there is no such leaf."""
    for entry in supported:
        if entry.function == 0x8000_0008:
            return int(entry.eax & 0xFF) or 36
    return 36


def is_amd(supported: Iterable[kvm_cpuid_entry2]) -> bool:
    """Whether the processor says AuthenticAMD, or HygonGenuine, which is one."""
    return any(entry.function == 0 and entry.ebx in (0x6874_7541, 0x6F67_7948) for entry in supported)


def _highest(supported: Sequence[kvm_cpuid_entry2]) -> int:
    return next((int(entry.eax) for entry in supported if entry.function == 0), 0)


def _fix_features(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 1: how many IDs a socket has, and feature bits."""
    count = min(1 << topology.package_bits, 0xFF)
    entry.ebx = entry.ebx & 0x0000_FFFF | count << 16
    entry.ecx |= _ECX_HYPERVISOR | _ECX_X2APIC
    entry.edx = entry.edx | _EDX_HTT if topology.package > 1 else entry.edx & ~_EDX_HTT


def _sharing(entry: kvm_cpuid_entry2, topology: Topology) -> int:
    """IDs that share a cache, less 1: the third level is the socket's, the others are a core's."""
    level = entry.eax >> 5 & 7
    return (1 << (topology.package_bits if level >= _CACHE_LEVEL3 else topology.thread_bits)) - 1


def _fix_intel_cache(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 4: EAX[25:14] IDs that share the cache, less 1; EAX[31:26] core IDs in the package, less 1."""
    if entry.eax & 0x1F:
        cores = (1 << topology.package_bits - topology.thread_bits) - 1
        entry.eax = entry.eax & 0x3FFF | _sharing(entry, topology) << 14 | min(cores, 0x3F) << 26


def _fix_amd_cache(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 0x8000001d: as leaf 4, without the core IDs."""
    if entry.eax & 0x1F:
        entry.eax = entry.eax & 0x3FFF | _sharing(entry, topology) << 14


def _fix_amd_features(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 0x80000001: CmpLegacy says that HTT counts cores, not threads."""
    if entry.ecx or entry.edx:
        entry.ecx = entry.ecx | _ECX_CMP_LEGACY if topology.package > 1 else entry.ecx & ~_ECX_CMP_LEGACY


def _fix_amd_size(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 0x80000008: ECX[7:0] vCPUs of the socket, less 1; ECX[15:12] bits of an ID that number them."""
    entry.ecx = entry.ecx & ~0xF0FF | topology.package_bits << 12 | topology.package - 1


def _fix_amd_topology(entry: kvm_cpuid_entry2, topology: Topology) -> None:
    """Leaf 0x8000001e is all a vCPU's own (`personalise`)."""
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0


_FIXES = {
    1: _fix_features,
    4: _fix_intel_cache,
    0x8000_0001: _fix_amd_features,
    0x8000_0008: _fix_amd_size,
    _AMD_CACHES: _fix_amd_cache,
    _AMD_IDS: _fix_amd_topology,
}


def _topology(kind: type[kvm_cpuid_entry2], leaf: int, topology: Topology) -> list[kvm_cpuid_entry2]:
    """Leaves 0xb and 0x1f: EAX shift to the next level, EBX CPUs at this level, ECX level number and type,
    EDX ID."""
    return [
        kind(leaf, 0, _SIGNIFICANT_INDEX, topology.thread_bits, topology.threads, _LEVEL_SMT << 8),
        kind(leaf, 1, _SIGNIFICANT_INDEX, topology.package_bits, topology.package, 1 | _LEVEL_CORE << 8),
        kind(leaf, 2, _SIGNIFICANT_INDEX, 0, 0, 2),
    ]
