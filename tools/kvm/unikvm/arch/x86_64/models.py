# SPDX-License-Identifier: GPL-2.0-only
"""CPU models: named subsets of what this host's KVM offers, so that a guest sees the same features on many hosts.

They are the levels of the x86-64 psABI (§3.1.1): a level's instructions, plus what only a kernel uses and what says
that a CPU's leaks are closed, which is never hidden. Who made the CPU, and its family and model, stay the host's.
"""

from __future__ import annotations

from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.uapi.kvm import kvm_cpuid_entry2

    Register = tuple[int, int, str]  # function, index, name

HOST = "host"
MODELS = (HOST, "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")

_1C, _7B, _XC = (1, 0, "ecx"), (7, 0, "ebx"), (0x8000_0001, 0, "ecx")

# What each level adds: the name and place of each feature. The first level's are those of every 64-bit CPU.
_LEVELS: tuple[dict[str, tuple[Register, int]], ...] = (
    {},
    {
        "sse3": (_1C, 0),
        "ssse3": (_1C, 9),
        "cx16": (_1C, 13),
        "sse4.1": (_1C, 19),
        "sse4.2": (_1C, 20),
        "popcnt": (_1C, 23),
        "lahf": (_XC, 0),
    },
    {
        "fma": (_1C, 12),
        "movbe": (_1C, 22),
        "xsave": (_1C, 26),
        "avx": (_1C, 28),
        "f16c": (_1C, 29),
        "bmi1": (_7B, 3),
        "avx2": (_7B, 5),
        "bmi2": (_7B, 8),
        "lzcnt": (_XC, 5),
    },
    {
        "avx512f": (_7B, 16),
        "avx512dq": (_7B, 17),
        "avx512cd": (_7B, 28),
        "avx512bw": (_7B, 30),
        "avx512vl": (_7B, 31),
    },
)
_XSAVE_LEVEL = 3
_XSTATE = {3: 0x7, 4: 0xE7}  # bits of XCR0: x87, SSE, AVX; with AVX-512's three
_XSTATE_LEAF = 0xD
_LEGACY_XSAVE = 576  # bytes of the area with x87 and SSE and its header


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# What stays at every level. Registers that are not named here, of leaves that are, become 0.
_KEPT: dict[Register, int] = {
    (1, 0, "eax"): 0xFFFF_FFFF,  # family, model, stepping
    (1, 0, "ebx"): 0xFFFF_FFFF,
    (1, 0, "edx"): 0xFFFF_FFFF & ~_bits(18, 21, 22, 29, 31),  # without serial number, debug store, ACPI, TM, PBE
    _1C: _bits(17, 21, 24, 31),  # PCID, x2APIC, TSC deadline, hypervisor
    (7, 0, "eax"): 0,
    _7B: _bits(0, 1, 7, 9, 10, 20),  # FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP
    (7, 0, "ecx"): _bits(2, 16),  # UMIP, LA57
    (7, 0, "edx"): _bits(9, 10, 26, 27, 28, 29, 31),  # SRBDS, MD_CLEAR, SPEC_CTRL, STIBP, L1D flush, ARCH_CAP, SSBD
    (0x8000_0001, 0, "eax"): 0xFFFF_FFFF,
    (0x8000_0001, 0, "ebx"): 0xFFFF_FFFF,
    _XC: _bits(1, 4, 22),  # CmpLegacy, CR8 in 32-bit mode, topology extensions
    (0x8000_0001, 0, "edx"): 0x0183_FBFF | _bits(11, 20, 26, 27, 29),  # leaf 1's, SYSCALL, NX, 1 GiB, RDTSCP, LM
    (0x8000_0008, 0, "eax"): 0xFFFF_FFFF,
    (0x8000_0008, 0, "ebx"): _bits(12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28),  # against leaks
    (0x8000_0008, 0, "ecx"): 0xFFFF_FFFF,
}
_NAMED_LEAVES = {(function, index) for function, index, _ in _KEPT}
# Monitor, PMU, SGX, processor trace, AMX, AVX10, SVM, SEV, PMU: all of them more than any level.
_DROPPED = {5, 0xA, 0x12, 0x14, 0x1C, 0x1D, 0x1E, 0x23, 0x24, 0x8000_000A, 0x8000_001F, 0x8000_0022}


def check(name: str) -> None:
    """CannotRun where there is no model `name`."""
    if name not in MODELS:
        raise CannotRun(f"no CPU model {name!r}", hint=f"one of {', '.join(MODELS)}")


def subset(supported: Sequence[kvm_cpuid_entry2], name: str) -> list[kvm_cpuid_entry2]:
    """What model `name` leaves of KVM's `supported` entries, which stay as they are. CannotRun where the host has less
    than the model promises.
    """
    check(name)
    if name == HOST or not supported:
        return list(supported)
    level = MODELS.index(name)
    wanted = {feature: place for step in _LEVELS[:level] for feature, place in step.items()}
    kept = dict(_KEPT)
    for register, bit in wanted.values():
        kept[register] |= 1 << bit
    kind = type(supported[0])
    entries = [kind.from_buffer_copy(entry) for entry in supported if entry.function not in _DROPPED]
    have = {(entry.function, entry.index): entry for entry in entries}
    missing = [feature for feature, place in wanted.items() if not _has(have, *place)]
    if missing:
        raise CannotRun(f"this host cannot be {name}: it lacks {', '.join(missing)}", hint="a lower model, or host")
    for entry in entries:
        if (entry.function, entry.index) in _NAMED_LEAVES:
            for name_of in ("eax", "ebx", "ecx", "edx"):
                mask = kept.get((entry.function, entry.index, name_of), 0)
                setattr(entry, name_of, getattr(entry, name_of) & mask)
    return _with_xstate(entries, level)


def _has(have: dict[tuple[int, int], kvm_cpuid_entry2], register: Register, bit: int) -> bool:
    entry = have.get(register[:2])
    return entry is not None and bool(getattr(entry, register[2]) >> bit & 1)


def _with_xstate(entries: list[kvm_cpuid_entry2], level: int) -> list[kvm_cpuid_entry2]:
    """Without the state components that the level has not (leaf 0xd), nor subleaves of leaf 7 beyond the first."""
    allowed = _XSTATE.get(level, 0)
    left = []
    size = _LEGACY_XSAVE
    for entry in entries:
        if entry.function == 7 and entry.index:
            continue
        if entry.function == _XSTATE_LEAF:
            if level < _XSAVE_LEVEL or (entry.index > 1 and not allowed >> entry.index & 1):
                continue
            if entry.index > 1:
                size = max(size, entry.ebx + entry.eax)  # the component's place and its bytes
        left.append(entry)
    for entry in left:
        if entry.function == 7:
            entry.eax = 0
        elif entry.function == _XSTATE_LEAF and entry.index == 0:
            entry.eax &= allowed
            entry.ebx = entry.ecx = size
            entry.edx = 0
        elif entry.function == _XSTATE_LEAF and entry.index == 1:
            entry.ecx = entry.edx = 0  # supervisor states
    return left
