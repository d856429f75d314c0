# SPDX-License-Identifier: GPL-2.0-only
"""The address map of the PC: every fixed guest-physical address, port and interrupt line, declared once.

Documentation/memory-map.md is generated from here (`python3 -m unikvm.arch.x86_64.memorymap`).
"""

from __future__ import annotations

from unikvm.memory import GuestAddress

_GIB = 1 << 30

# Low memory: what the boot loaders build there. [start, end) each.
GDT = GuestAddress(0x500)
GDT_END = GuestAddress(0x600)
BOOT_INFO = GuestAddress(0x6000)  # PVH start info or multiboot information
BOOT_INFO_END = GuestAddress(0x7000)
ZERO_PAGE = GuestAddress(0x7000)
ZERO_PAGE_END = GuestAddress(0x8000)
PAGE_TABLES = GuestAddress(0x9000)  # PML4, PDPT and four page directories
PAGE_TABLES_END = GuestAddress(0xF000)
CMDLINE = GuestAddress(0x20000)
CMDLINE_END = GuestAddress(0x30000)
EBDA = GuestAddress(0x9FC00)  # conventional memory ends here
ACPI = GuestAddress(0xE0000)  # the RSDP first: guests without a loader that passes it scan the BIOS area
ACPI_END = GuestAddress(0x100000)
HIGH_RAM = GuestAddress(0x100000)

BIOS = GuestAddress(0xE0000)  # with firmware: the end of its image, for real mode
BIOS_END = GuestAddress(0x100000)

# RAM fills [0, LOW_RAM_END), then goes on from HIGH_MEMORY.
LOW_RAM_END = GuestAddress(3 * _GIB)
HIGH_MEMORY = GuestAddress(4 * _GIB)

PCI_MMIO32 = GuestAddress(0xC000_0000)
PCI_MMIO32_END = GuestAddress(0xE000_0000)
ECAM = GuestAddress(0xE000_0000)
ECAM_END = GuestAddress(0xF000_0000)
ECAM_BUS_SIZE = 1 << 20  # configuration space of one bus
PCI_SLOTS = 32  # device numbers of a bus
PCI_BUSES = 1  # what MCFG and _CRS announce; a guest enumerates each bus it is told of
VIRTIO_MMIO = GuestAddress(0xFEB0_0000)
VIRTIO_MMIO_SIZE = 0x1000
VIRTIO_MMIO_MAX = 8
IOAPIC = GuestAddress(0xFEC0_0000)
LAPIC = GuestAddress(0xFEE0_0000)
KVM_IDENTITY_MAP = GuestAddress(0xFEFF_C000)  # 1 page
KVM_TSS = GuestAddress(0xFEFF_D000)  # 3 pages
TESTDEV_MMIO = GuestAddress(0xFF00_0000)
TESTDEV_MMIO_SIZE = 0x10000
FLASH_MAX = 8 << 20  # firmware ends at 4 GiB, where a CPU starts
PCI_MMIO64_MIN = 64 * _GIB
PCI_MMIO64_SIZE = 32 * _GIB
PLUGGABLE_STEP = 128 << 20  # Linux adds memory in such blocks, so less of the region would be of no use to it

# Ports
PIT = 0x40
PIT_SIZE = 4
I8042_DATA = 0x60
SPEAKER = 0x61
I8042_COMMAND = 0x64
RTC = 0x70
TESTDEV_PORTS = 0xE0
TESTDEV_FLUSH = 0xE4
TESTDEV_BYTE_PORTS = 0xE8
DEBUG_EXIT = 0xF4
DEBUG_EXIT_SIZE = 4
COM1 = 0x3F8
COM1_SIZE = 8
SYSTEM_CONTROL = 0x92
DEBUG_CONSOLE = 0x402
PVPANIC = 0x505
FW_CFG = 0x510
FW_CFG_SIZE = 12
PM1A_EVENT = 0x600
PM1A_EVENT_SIZE = 4
PM1A_CONTROL = 0x604
PM1A_CONTROL_SIZE = 2
PM_TIMER = 0x608  # firmware knows the ACPI ports by their base, 0x600
PM_TIMER_SIZE = 4
PCI_CONFIG = 0xCF8
PCI_CONFIG_SIZE = 8
RESET_REGISTER = 0xCF9
RESET_VALUE = 0x06
TESTDEV_IRQ_PORTS = 0x2000
TESTDEV_IRQ_COUNT = 24
PCI_PLUG = 0xAE00  # where QEMU's older machines have theirs
PCI_PLUG_SIZE = 12
CPU_PLUG = 0xAF00
CPU_PLUG_SIZE = 12

# Interrupt lines (GSI = IOAPIC pin, except the timer: ISA IRQ 0 arrives on pin 2)
TIMER_IRQ = 0
TIMER_GSI = 2
KEYBOARD_IRQ = 1
COM1_IRQ = 4
RTC_IRQ = 8
SCI_IRQ = 9
PLUG_IRQ = 10  # of the generic event device, in machines whose CPUs or PCI devices come and go
VIRTIO_MMIO_GSI = 16  # and up: pin 16 + n for device n

# Types of a range in an e820 map (ACPI 6.4 §15.1); PVH and multiboot use the same numbers.
E820_RAM = 1
E820_RESERVED = 2


def ram_layout(size: int) -> tuple[tuple[GuestAddress, int], ...]:
    """The (start, bytes) stretches of `size` bytes of RAM, for GuestMemory."""
    if size <= LOW_RAM_END:
        return ((GuestAddress(0), size),)
    return ((GuestAddress(0), LOW_RAM_END), (HIGH_MEMORY, size - LOW_RAM_END))


def ram_end(size: int) -> GuestAddress:
    """The end of the highest stretch of `size` bytes of RAM."""
    start, length = ram_layout(size)[-1]
    return GuestAddress(start + length)


def low_ram_end(size: int) -> GuestAddress:
    """The end of RAM below 4 GiB: where a loader may put things that 32-bit addresses must reach."""
    return GuestAddress(min(size, LOW_RAM_END))


def pci_mmio64(end: int) -> tuple[GuestAddress, GuestAddress]:
    """[start, end) of the window for 64-bit BARs, above all memory, which ends at `end`."""
    start = max(PCI_MMIO64_MIN, above(end))
    return GuestAddress(start), GuestAddress(start + PCI_MMIO64_SIZE)


def above(end: int) -> GuestAddress:
    """Where the next device with memory of its own may begin when the last one, or RAM, ends at `end`.

    Beyond 4 GiB, and at a whole GiB: Linux adds memory by 128 MiB, and pages for it by 2 MiB.
    """
    return GuestAddress(max(HIGH_MEMORY, -(-end // _GIB) * _GIB))


def pluggable(size: int, more: int) -> tuple[GuestAddress, int]:
    """(start, bytes) of the region in which `more` bytes can be plugged in beside `size` bytes of RAM; whole steps."""
    return above(ram_end(size)), -(-more // PLUGGABLE_STEP) * PLUGGABLE_STEP


def firmware_mmio32(size: int) -> tuple[GuestAddress, GuestAddress]:
    """[start, end) in which firmware may place BARs: from 2 GiB, or the end of RAM, to the IOAPIC. There is no ECAM."""
    start = 2 * _GIB if size <= 2 * _GIB else LOW_RAM_END
    return GuestAddress(start), IOAPIC


def firmware_mmio64(end: int) -> tuple[GuestAddress, GuestAddress]:
    """[start, end) in which firmware may place 64-bit BARs: it begins sooner above memory than we would."""
    return above(end), pci_mmio64(end)[1]


def virtio_mmio(index: int) -> tuple[GuestAddress, int]:
    """Address and GSI of virtio-mmio device `index` (0 to VIRTIO_MMIO_MAX - 1)."""
    if not 0 <= index < VIRTIO_MMIO_MAX:
        raise ValueError(f"no virtio-mmio device {index}: there are {VIRTIO_MMIO_MAX}")
    return GuestAddress(VIRTIO_MMIO + index * VIRTIO_MMIO_SIZE), VIRTIO_MMIO_GSI + index


def e820(size: int) -> list[tuple[int, int, int]]:
    """The (start, bytes, type) map of a machine with `size` bytes of RAM, ascending.

    ECAM is listed as reserved: Linux believes an MCFG table only when it is.
    """
    low = low_ram_end(size)
    ranges: list[tuple[int, int, int]] = [(0, min(EBDA, low), E820_RAM)]
    if low > EBDA:
        ranges.append((EBDA, HIGH_RAM - EBDA, E820_RESERVED))
    if low > HIGH_RAM:
        ranges.append((HIGH_RAM, low - HIGH_RAM, E820_RAM))
    ranges.append((ECAM, ECAM_END - ECAM, E820_RESERVED))
    if size > LOW_RAM_END:
        ranges.append((HIGH_MEMORY, size - LOW_RAM_END, E820_RAM))
    return ranges
