# SPDX-License-Identifier: GPL-2.0-only
"""Threads of a core on AMD: a guest sees them only with the topology extensions (AMD APM vol. 3, appendix E.4.15-16),
whose leaf of caches replaces two older ones. Where KVM does not offer them it is made of those.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.uapi.kvm import kvm_cpuid_entry2

_SIGNIFICANT_INDEX = 1
_TOPOEXT = 1 << 22  # leaf 0x80000001 ECX
_CACHES, _IDS = 0x8000_001D, 0x8000_001E
_DATA, _INSTRUCTION, _UNIFIED = 1, 2, 3
_SELF_INITIALISING, _FULLY_ASSOCIATIVE = 1 << 8, 1 << 9
# Ways, as leaf 0x80000006 encodes them; 0xf: fully associative.
_WAYS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 16, 0xA: 32, 0xB: 48, 0xC: 64, 0xD: 96, 0xE: 128}
_FULL = 0xF


def describe_threads(entries: list[kvm_cpuid_entry2]) -> list[kvm_cpuid_entry2]:
    """`entries` with the topology extensions, which are changed in place where they are there."""
    found = {(entry.function, entry.index): entry for entry in entries}
    features = found.get((0x8000_0001, 0))
    if features is None:
        return entries
    kind = type(features)
    features.ecx |= _TOPOEXT
    highest = found.get((0x8000_0000, 0))
    if highest is not None:
        highest.eax = max(highest.eax, _IDS)
    if (_IDS, 0) not in found:
        entries.append(kind(_IDS))
    first = found.get((_CACHES, 0))
    if first is not None and first.eax & 0x1F:
        return entries
    entries = [entry for entry in entries if entry.function != _CACHES]
    level1, level2 = found.get((0x8000_0005, 0)), found.get((0x8000_0006, 0))
    caches = []
    if level1 is not None:
        caches = [_level1(kind, _DATA, level1.ecx), _level1(kind, _INSTRUCTION, level1.edx)]
    if level2 is not None:
        caches.append(_outer(kind, 2, level2.ecx, (level2.ecx >> 16) << 10))
        caches.append(_outer(kind, 3, level2.edx, (level2.edx >> 18) << 19))
    there = [cache for cache in caches if cache is not None]
    for index, entry in enumerate([*there, kind(_CACHES)]):  # the last one says that there are no more
        entry.function, entry.index, entry.flags = _CACHES, index, _SIGNIFICANT_INDEX
        entries.append(entry)
    return entries


def _level1(kind: type[kvm_cpuid_entry2], what: int, register: int) -> kvm_cpuid_entry2 | None:
    """Leaf 0x80000005: [31:24] KiB, [23:16] ways (0xff: all), [7:0] bytes of a line."""
    ways = register >> 16 & 0xFF
    return _cache(kind, what, 1, (register >> 24) << 10, register & 0xFF, 0 if ways == 0xFF else ways, ways == 0xFF)


def _outer(kind: type[kvm_cpuid_entry2], level: int, register: int, size: int) -> kvm_cpuid_entry2 | None:
    """Leaf 0x80000006: [15:12] ways, encoded, [7:0] bytes of a line."""
    code = register >> 12 & 0xF
    return _cache(kind, _UNIFIED, level, size, register & 0xFF, _WAYS.get(code, 16 if code else 0), code == _FULL)


def _cache(
    kind: type[kvm_cpuid_entry2], what: int, level: int, size: int, line: int, ways: int, full: bool
) -> kvm_cpuid_entry2 | None:
    """One subleaf: EAX type and level; EBX line, partitions, ways; ECX sets, each less 1. None for no cache."""
    if not size or not line or not (ways or full):
        return None
    ways = size // line if full else ways
    sets = max(size // (line * ways), 1)
    eax = what | level << 5 | _SELF_INITIALISING | (_FULLY_ASSOCIATIVE if full else 0)
    return kind(_CACHES, 0, 0, eax, line - 1 | min(ways - 1, 0x3FF) << 22, sets - 1, 0)
