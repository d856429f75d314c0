# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator
from struct import unpack

import pytest

from unikvm.arch.x86_64 import layout, msr, state
from unikvm.memory import GuestMemory
from unikvm.uapi.kvm import kvm_regs, kvm_sregs

RESET_CR0 = 0x6000_0010  # CD, NW, ET: what KVM returns for a fresh vCPU


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory([(0, 1 << 20)])
    yield ram
    ram.close()


@pytest.fixture
def sregs() -> kvm_sregs:
    fresh = kvm_sregs(cr0=RESET_CR0, apic_base=0xFEE0_0900)
    fresh.cs.selector, fresh.cs.base = 0xF000, 0xFFFF_0000
    return fresh


def test_long_mode(memory: GuestMemory, sregs: kvm_sregs) -> None:
    regs = kvm_regs(rdx=0x600)
    state.enter(state.LONG, {"rip": 0x100_0200, "rsi": 0x7000}, sregs, regs, memory)
    assert (regs.rip, regs.rsi, regs.rdx, regs.rflags) == (0x100_0200, 0x7000, 0, 2)
    assert sregs.cr0 == 0x8000_0011
    assert sregs.cr4 == 0x20
    assert sregs.efer == 0x500
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db) == (0x10, 1, 0)
    assert (sregs.ds.selector, sregs.ss.selector) == (0x18, 0x18)
    assert sregs.apic_base == 0xFEE0_0900
    assert (sregs.gdt.base, sregs.gdt.limit) == (layout.GDT, 47)


def translate(memory: GuestMemory, cr3: int, address: int) -> int:
    table = cr3
    for shift in (39, 30, 21):
        (entry,) = unpack("<Q", memory.read(table + (address >> shift & 0x1FF) * 8, 8))
        assert entry & 3 == 3
        table = entry & ~0xFFF
        if entry & 0x80:
            return int(table & ~0x1F_FFFF | address & 0x1F_FFFF)
    raise AssertionError("no 2 MiB page")


@pytest.mark.parametrize("address", [0, 0x123456, 0x4000_0000, 0xBFFF_FFFF, 0xFEE0_0030, 0xFFFF_FFFF])
def test_the_first_4_gib_map_to_themselves(memory: GuestMemory, address: int) -> None:
    state.write_page_tables(memory)
    assert translate(memory, layout.PAGE_TABLES, address) == address
    assert not any(memory.read(layout.PAGE_TABLES_END, 0x1000))


def test_protected_mode(memory: GuestMemory, sregs: kvm_sregs) -> None:
    regs = kvm_regs()
    state.enter(state.PROTECTED, {"rip": 0x10_0000, "rbx": 0x6000, "rax": 0x2BAD_B002}, sregs, regs, memory)
    assert (regs.rip, regs.rbx, regs.rax) == (0x10_0000, 0x6000, 0x2BAD_B002)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.base, sregs.cs.limit) == (0, 1, 0, 0xFFFF_FFFF)
    assert (sregs.tr.type, sregs.tr.limit, sregs.tr.s) == (0xB, 0x67, 0)


@pytest.mark.parametrize(("address", "selector", "ip"), [(0x7C00, 0, 0x7C00), (0x2_1234, 0x2000, 0x1234)])
def test_real_mode(memory: GuestMemory, sregs: kvm_sregs, address: int, selector: int, ip: int) -> None:
    regs = kvm_regs()
    state.enter(state.REAL, {"rip": address, "rsp": 0x7C00}, sregs, regs, memory)
    assert (sregs.cs.selector, sregs.cs.base, regs.rip, regs.rsp) == (selector, selector << 4, ip, 0x7C00)
    assert sregs.cr0 == RESET_CR0


def test_mistakes_are_noticed(memory: GuestMemory, sregs: kvm_sregs) -> None:
    with pytest.raises(ValueError, match="beyond the reach"):
        state.real_mode(sregs, 1 << 20)
    with pytest.raises(ValueError, match="no such mode"):
        state.enter("virtual", {}, sregs, kvm_regs(), memory)
    with pytest.raises(ValueError, match="no such registers: eax"):
        state.enter(state.LONG, {"eax": 1}, sregs, kvm_regs(), memory)


def test_initial_msrs() -> None:
    assert dict(msr.initial()) == {0x1A0: 1, 0x2FF: 0x806}
