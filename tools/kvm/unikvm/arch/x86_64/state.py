# SPDX-License-Identifier: GPL-2.0-only
"""Initial register states: 16-bit real mode, 32-bit protected mode (PVH, multiboot, Linux), 64-bit long mode
(Linux), and that of a CPU after a reset (firmware).

Each function changes the `kvm_sregs` that KVM returned for a fresh vCPU; what it does not name keeps its
reset value. Application processors need none of it: they wait for the SIPI in the state that KVM resets them
to.
"""

from __future__ import annotations

from unikvm.arch.x86_64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unikvm.memory import GuestMemory
    from unikvm.uapi.kvm import kvm_regs, kvm_segment, kvm_sregs

REAL = "real"
PROTECTED = "protected"
LONG = "long"
RESET = "reset"

# Selectors; Linux's 64-bit boot protocol wants __BOOT_CS = 0x10 and __BOOT_DS = 0x18.
CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
TSS_SELECTOR = 0x20

_CR0_PE = 1 << 0
_CR0_ET = 1 << 4
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10

_TYPE_CODE = 0xB  # execute, read, accessed
_TYPE_DATA = 0x3  # read, write, accessed
_TYPE_BUSY_TSS = 0xB

# Page table bits (Intel SDM vol. 3A §4.5)
_PTE_TABLE = 0x3  # present, writable
_PTE_LARGE = 0x83  # present, writable, 2 MiB
_LARGE_PAGE = 2 << 20
_MAPPED = 4 << 30

RFLAGS_RESERVED = 0x2
RESET_IP = 0xFFF0  # in a code segment whose base is 64 KiB below 4 GiB


def enter(
    mode: str,
    registers: Mapping[str, int],
    sregs: kvm_sregs,
    regs: kvm_regs,
    memory: GuestMemory,
) -> None:
    """Set up `sregs` and `regs` for an entry in `mode` with `registers` (names of kvm_regs, the others 0).

    Writes the GDT, and for long mode the page tables, into `memory`. In real mode `registers` has a full
    address in `rip`: CS:IP becomes address >> 16 << 12 : address & 0xffff.
    """
    values = dict(registers)
    if mode == REAL:
        values["rip"] = real_mode(sregs, values.get("rip", 0))
    elif mode == PROTECTED:
        protected_mode(sregs, memory)
    elif mode == LONG:
        long_mode(sregs, memory)
    elif mode == RESET:
        values["rip"] = RESET_IP  # KVM has done the rest
    else:
        raise ValueError(f"no such mode: {mode!r}")
    for name in _GENERAL:
        setattr(regs, name, values.pop(name, 0))
    regs.rip = values.pop("rip", 0)
    regs.rflags = values.pop("rflags", RFLAGS_RESERVED)
    if values:
        raise ValueError(f"no such registers: {', '.join(values)}")


_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))


def real_mode(sregs: kvm_sregs, address: int) -> int:
    """16-bit code at `address` (below 1 MiB), every data segment at 0. Returns the IP."""
    if not 0 <= address < 1 << 20:
        raise ValueError(f"{address:#x} is beyond the reach of real mode")
    selector = address >> 16 << 12
    sregs.cs.selector = selector
    sregs.cs.base = selector << 4
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.selector = 0
        segment.base = 0
    return address & 0xFFFF


def protected_mode(sregs: kvm_sregs, memory: GuestMemory) -> None:
    """32-bit, flat, paging off: what PVH (start info ABI) and multiboot 1 (§3.2) ask for."""
    _flat_segments(sregs, long=False)
    _load_gdt(sregs, memory, long=False)
    # Assigned, not or-ed: the reset value has caching disabled (CD, NW).
    sregs.cr0 = _CR0_PE | _CR0_ET
    sregs.cr4 = 0


def long_mode(sregs: kvm_sregs, memory: GuestMemory) -> None:
    """64-bit, the first 4 GiB mapped to themselves (Linux boot protocol, "64-bit boot protocol")."""
    _flat_segments(sregs, long=True)
    _load_gdt(sregs, memory, long=True)
    write_page_tables(memory)
    sregs.cr3 = layout.PAGE_TABLES
    sregs.cr4 = _CR4_PAE
    sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_PG
    sregs.efer |= _EFER_LME | _EFER_LMA


def write_page_tables(memory: GuestMemory) -> None:
    """A PML4, a PDPT and four page directories of 2 MiB pages: unlike 1 GiB pages every x86-64 CPU has
    them."""
    from array import array

    pml4 = layout.PAGE_TABLES
    pdpt = pml4 + 0x1000
    directories = pdpt + 0x1000
    memory.write(pml4, (pdpt | _PTE_TABLE).to_bytes(8, "little"))
    pointers = range(directories | _PTE_TABLE, directories + 0x4000, 0x1000)
    memory.write(pdpt, array("Q", pointers).tobytes())
    memory.write(directories, array("Q", range(_PTE_LARGE, _MAPPED, _LARGE_PAGE)).tobytes())


def _flat_segments(sregs: kvm_sregs, *, long: bool) -> None:
    _segment(sregs.cs, CODE_SELECTOR, _TYPE_CODE)
    sregs.cs.l, sregs.cs.db = (1, 0) if long else (0, 1)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _segment(segment, DATA_SELECTOR, _TYPE_DATA)
    _segment(sregs.tr, TSS_SELECTOR, _TYPE_BUSY_TSS)
    sregs.tr.limit, sregs.tr.s, sregs.tr.g, sregs.tr.db = 0x67, 0, 0, 0


def _segment(segment: kvm_segment, selector: int, kind: int) -> None:
    """A flat 4 GiB segment; KVM takes the limit in bytes."""
    segment.selector = selector
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.type = kind
    segment.present, segment.dpl, segment.s, segment.g, segment.db, segment.l = 1, 0, 1, 1, 1, 0
    segment.unusable = 0


def _load_gdt(sregs: kvm_sregs, memory: GuestMemory, *, long: bool) -> None:
    """The descriptors of the loaded segments, so that a guest which reloads one before its own GDT goes
    on."""
    code = 0x00AF_9B00_0000_FFFF if long else 0x00CF_9B00_0000_FFFF
    # The TSS descriptor has 16 bytes in long mode.
    descriptors = (0, 0, code, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0)
    memory.write(layout.GDT, b"".join(value.to_bytes(8, "little") for value in descriptors))
    sregs.gdt.base = layout.GDT
    sregs.gdt.limit = len(descriptors) * 8 - 1
    sregs.idt.base = 0
    sregs.idt.limit = 0
