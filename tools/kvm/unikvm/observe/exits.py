# SPDX-License-Identifier: GPL-2.0-only
"""The kernel half's accounting as people read it: exits by reason, time by place, log2 histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log2
from typing import TYPE_CHECKING

from unikvm.record import Record
from unikvm.uapi import kvm
from unikvm.uapi import unikvm as uapi

if TYPE_CHECKING:
    from unikvm.sys.companion import Companion

NameOf = Callable[[int], str]

# AMD APM vol. 2, appendix C (VMEXIT codes), as indices of the accounting
SVM = {
    0x60: "intr", 0x61: "nmi", 0x62: "smi", 0x63: "init", 0x64: "vintr", 0x6E: "rdtsc", 0x72: "cpuid", 0x76: "invd",
    0x77: "pause", 0x78: "hlt", 0x79: "invlpg", 0x7B: "ioio", 0x7C: "msr", 0x7F: "shutdown", 0x81: "vmmcall",
    0x87: "rdtscp", 0x89: "wbinvd", 0x8A: "monitor", 0x8B: "mwait", 0x8D: "xsetbv", 0xF0: "npf", 0xF1: "avic-ipi",
    0xF2: "avic-noaccel", 0xF3: "vmgexit",
}  # fmt: skip
# Intel SDM vol. 3D, appendix C (basic exit reasons)
VMX = {
    0: "exception-nmi", 1: "intr", 2: "triple-fault", 7: "intr-window", 8: "nmi-window", 10: "cpuid", 12: "hlt",
    14: "invlpg", 16: "rdtsc", 18: "vmcall", 28: "cr", 29: "dr", 30: "io", 31: "msr-read", 32: "msr-write",
    36: "mwait", 39: "monitor", 40: "pause", 43: "tpr", 44: "apic-access", 45: "eoi", 48: "ept-violation",
    49: "ept-misconfig", 52: "preemption-timer", 54: "wbinvd", 55: "xsetbv", 56: "apic-write", 58: "invpcid",
}  # fmt: skip
NAMES = {uapi.UNIKVM_ISA_SVM: SVM, uapi.UNIKVM_ISA_VMX: VMX}


class Exits(Record):
    """Sums over the vCPUs of one VM; times in seconds."""

    entries: int
    exits: int
    user_exits: int
    guest_seconds: float
    kernel_seconds: float
    user_seconds: float
    by_reason: dict[str, int]
    by_user_reason: dict[str, int]
    histograms: dict[str, list[int]]  # guest, kernel, user: bucket n counts [2^n, 2^(n+1)) ns


def read(companion: Companion) -> Exits:
    """What `companion` has counted until now."""
    area = companion.area()
    slots = companion.slots()
    names = NAMES.get(area.isa, {})
    hertz = area.tsc_khz * 1000 or 1
    return Exits(
        entries=sum(slot.entries for slot in slots),
        exits=sum(slot.exits for slot in slots),
        user_exits=sum(slot.user_exits for slot in slots),
        guest_seconds=sum(slot.guest_ticks for slot in slots) / hertz,
        kernel_seconds=sum(slot.kernel_ticks for slot in slots) / hertz,
        user_seconds=sum(slot.user_ticks for slot in slots) / hertz,
        by_reason=_named(_sum(slot.reason for slot in slots), lambda index: reason_name(names, index)),
        by_user_reason=_named(_sum(slot.user_reason for slot in slots), user_reason_name),
        histograms={
            place: in_nanoseconds(_sum(getattr(slot, f"{place}_histogram") for slot in slots), area.tsc_khz)
            for place in ("guest", "kernel", "user")
        },
    )


def _sum(arrays: Iterable[Iterable[int]]) -> list[int]:
    return [sum(column) for column in zip(*arrays, strict=True)]


def _named(counts: list[int], name: NameOf) -> dict[str, int]:
    """Non-zero counts by name, most first."""
    found = [(name(index), count) for index, count in enumerate(counts) if count]
    return dict(sorted(found, key=lambda item: -item[1]))


def reason_name(names: dict[int, str], index: int) -> str:
    """A hardware reason by its index; its number where it has no name here."""
    if index == uapi.UNIKVM_REASON_OTHER:
        return "other"
    return names.get(index, f"{index:#x}")


def user_reason_name(index: int) -> str:
    """KVM_EXIT_… without its prefix, in lower case."""
    for name in dir(kvm):
        kind = name.removeprefix("KVM_EXIT_")
        # These are values of fields within an exit, not reasons.
        if kind != name and not kind.startswith(("HYPERV_", "XEN_", "IO_")) and getattr(kvm, name) == index:
            return kind.lower().replace("_", "-")
    return f"{index}"


def in_nanoseconds(buckets: list[int], tsc_khz: int) -> list[int]:
    """A histogram of ticks as one of nanoseconds: its buckets move by the rounded log2 of the clock's period."""
    if not tsc_khz:
        return buckets
    shift = -round(log2(tsc_khz / 1e6))
    moved = [0] * len(buckets)
    for index, count in enumerate(buckets):
        moved[min(max(index + shift, 0), len(buckets) - 1)] += count
    return moved


def table(exits: Exits) -> str:
    """The accounting as text."""
    total = exits.guest_seconds + exits.kernel_seconds + exits.user_seconds or 1.0
    lines = [f"{exits.exits} exits, {exits.user_exits} of them to the user half"]
    for place in ("guest", "kernel", "user"):
        seconds = getattr(exits, f"{place}_seconds")
        lines.append(f"  {place:<8}{seconds:10.6f} s {100 * seconds / total:5.1f}%")
    for title, counts in (("hardware", exits.by_reason), ("user half", exits.by_user_reason)):
        lines.append(f"{title}:")
        lines += [f"  {name:<18}{count:>10}" for name, count in counts.items()]
    return "\n".join(lines) + "\n"
