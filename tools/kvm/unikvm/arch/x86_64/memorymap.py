# SPDX-License-Identifier: GPL-2.0-only
"""Documentation/memory-map.md, out of layout.py. `python3 -m unikvm.arch.x86_64.memorymap` prints it."""

from __future__ import annotations

from unikvm.arch.x86_64 import layout as pc

_Rows = list[tuple[int, int, str]]


def memory_ranges() -> _Rows:
    """[start, end) and use of every fixed range of guest-physical memory, ascending."""
    return [
        (pc.GDT, pc.GDT_END, "GDT of the boot state"),
        (pc.BOOT_INFO, pc.BOOT_INFO_END, "PVH start info, or multiboot information"),
        (pc.ZERO_PAGE, pc.ZERO_PAGE_END, "Linux boot parameters (bzImage)"),
        (pc.PAGE_TABLES, pc.PAGE_TABLES_END, "page tables of the 64-bit boot state"),
        (pc.CMDLINE, pc.CMDLINE_END, "command line"),
        (pc.EBDA, pc.HIGH_RAM, "reserved as on a PC (EBDA, VGA, ROM area; backed by RAM)"),
        (pc.ACPI, pc.ACPI_END, "ACPI: RSDP, then the tables; with firmware: the end of its image"),
        (pc.HIGH_RAM, pc.LOW_RAM_END, "RAM: kernel, and the initramfs as high as it fits"),
        (
            pc.PCI_MMIO32,
            pc.PCI_MMIO32_END,
            "PCI memory window below 4 GiB (with firmware: 2 GiB or more, to the IOAPIC)",
        ),
        (pc.ECAM, pc.ECAM_END, f"PCI configuration space (ECAM), without firmware; {pc.PCI_BUSES} bus announced"),
        (pc.VIRTIO_MMIO, pc.VIRTIO_MMIO + pc.VIRTIO_MMIO_MAX * pc.VIRTIO_MMIO_SIZE, "virtio-mmio devices"),
        (pc.IOAPIC, pc.IOAPIC + 0x1000, "IOAPIC (in KVM)"),
        (pc.LAPIC, pc.LAPIC + 0x1000, "local APIC (in KVM)"),
        (pc.KVM_IDENTITY_MAP, pc.KVM_IDENTITY_MAP + 0x1000, "KVM's identity map (Intel, real mode)"),
        (pc.KVM_TSS, pc.KVM_TSS + 0x3000, "KVM's TSS (Intel, real mode)"),
        (pc.TESTDEV_MMIO, pc.TESTDEV_MMIO + pc.TESTDEV_MMIO_SIZE, "pc-testdev memory"),
        (pc.HIGH_MEMORY - pc.FLASH_MAX, pc.HIGH_MEMORY, "with firmware: its image at the end, its variables before it"),
    ]


def port_ranges() -> _Rows:
    """[start, end) and use of every port, ascending. The 8259s are in KVM."""
    irq_ports_end = pc.TESTDEV_IRQ_PORTS + pc.TESTDEV_IRQ_COUNT
    return [
        (pc.PIT, pc.PIT + pc.PIT_SIZE, "8254 timer (in KVM from the first access on)"),
        (pc.I8042_DATA, pc.I8042_DATA + 1, "i8042 data"),
        (pc.SPEAKER, pc.SPEAKER + 1, "the 8254's speaker port (likewise)"),
        (pc.I8042_COMMAND, pc.I8042_COMMAND + 1, "i8042 command and status; reset"),
        (pc.RTC, pc.RTC + 2, "CMOS RTC"),
        (pc.SYSTEM_CONTROL, pc.SYSTEM_CONTROL + 1, "with firmware: system control port A; reset"),
        (pc.TESTDEV_PORTS, pc.TESTDEV_PORTS + 4, "pc-testdev: a 32-bit register"),
        (pc.TESTDEV_FLUSH, pc.TESTDEV_FLUSH + 4, "pc-testdev: unmap a page"),
        (pc.TESTDEV_BYTE_PORTS, pc.TESTDEV_BYTE_PORTS + 4, "pc-testdev: the register, bytewise"),
        (pc.DEBUG_EXIT, pc.DEBUG_EXIT + pc.DEBUG_EXIT_SIZE, "isa-debug-exit"),
        (pc.COM1, pc.COM1 + pc.COM1_SIZE, "COM1"),
        (pc.DEBUG_CONSOLE, pc.DEBUG_CONSOLE + 1, "with firmware: its debug console, where asked for"),
        (pc.PVPANIC, pc.PVPANIC + 1, "pvpanic"),
        (pc.FW_CFG, pc.FW_CFG + pc.FW_CFG_SIZE, "fw_cfg, for firmware; for kvm-unit-tests two ports with numbers"),
        (pc.PM1A_EVENT, pc.PM1A_EVENT + pc.PM1A_EVENT_SIZE, "ACPI PM1a event block"),
        (pc.PM1A_CONTROL, pc.PM1A_CONTROL + pc.PM1A_CONTROL_SIZE, "ACPI PM1a control block"),
        (pc.PM_TIMER, pc.PM_TIMER + pc.PM_TIMER_SIZE, "with firmware: ACPI PM timer"),
        (pc.PCI_CONFIG, pc.PCI_CONFIG + pc.PCI_CONFIG_SIZE, "PCI configuration; 0xcf9 resets"),
        (pc.TESTDEV_IRQ_PORTS, irq_ports_end, "pc-testdev: interrupt lines"),
        (pc.PCI_PLUG, pc.PCI_PLUG + pc.PCI_PLUG_SIZE, "hot-plug of PCI devices"),
        (pc.CPU_PLUG, pc.CPU_PLUG + pc.CPU_PLUG_SIZE, "hot-plug of CPUs"),
    ]


def interrupt_lines() -> list[tuple[str, str]]:
    """Interrupt lines and their users."""
    last_mmio = pc.VIRTIO_MMIO_GSI + pc.VIRTIO_MMIO_MAX - 1
    return [
        (f"{pc.TIMER_IRQ} (pin {pc.TIMER_GSI})", "8254 timer (in KVM)"),
        (str(pc.KEYBOARD_IRQ), "i8042"),
        (str(pc.COM1_IRQ), "COM1"),
        (str(pc.RTC_IRQ), "RTC"),
        (str(pc.SCI_IRQ), "ACPI SCI, level"),
        (str(pc.PLUG_IRQ), "ACPI generic event device (hot-plug), level"),
        (f"{pc.VIRTIO_MMIO_GSI}-{last_mmio}", "virtio-mmio devices"),
        ("MSI", "virtio-pci devices: no line"),
    ]


def _table(rows: _Rows, digits: int) -> list[str]:
    lines = ["| start | end | use |", "|---|---|---|"]
    return lines + [f"| 0x{start:0{digits}x} | 0x{end:0{digits}x} | {use} |" for start, end, use in rows]


def markdown() -> str:
    """The whole document."""
    mmio64 = f"{pc.PCI_MMIO64_SIZE >> 30} GiB from the higher of {pc.PCI_MMIO64_MIN >> 30} GiB and the end of memory"
    lines = [
        "# The address map of a unikvm guest",
        "",
        "Generated from `tools/kvm/unikvm/arch/x86_64/layout.py`: change that file, then run",
        "`python3 -m unikvm.arch.x86_64.memorymap` in `tools/kvm`. Ranges are [start, end).",
        "",
        "## Memory",
        "",
        *_table(memory_ranges(), 8),
        "",
        f"RAM beyond {pc.LOW_RAM_END >> 30} GiB goes on at {pc.HIGH_MEMORY >> 30} GiB.",
        "Memory that can be plugged in (`--mem ...,max=`), then each image (`--pmem`), begins at the next whole GiB.",
        f"The PCI window for 64-bit BARs is {mmio64} rounded up to 1 GiB.",
        "",
        "## Ports",
        "",
        *_table(port_ranges(), 4),
        "",
        "## Interrupt lines",
        "",
        "| line | use |",
        "|---|---|",
        *(f"| {line} | {use} |" for line, use in interrupt_lines()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
