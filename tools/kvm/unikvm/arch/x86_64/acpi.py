# SPDX-License-Identifier: GPL-2.0-only
"""The ACPI tables of a machine (ACPI 6.4): RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, DSDT.

They describe what is there and nothing else: each device named here, and each bus announced, is probed by the
guest at the price of exits.
"""

from __future__ import annotations

from struct import pack

from unikvm.arch.x86_64 import aml, layout
from unikvm.arch.x86_64.topology import XAPIC_IDS, Topology
from unikvm.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.memory import GuestAddress, GuestMemory

SLEEP_TYPE_S5 = 5  # SLP_TYP of PM1a_CNT for power-off; what \_S5 says

_OEM_ID = b"UNIKVM"
_HEADER_SIZE = 36


class AcpiConfig(Record):
    """What the tables describe. `memory`: bytes of RAM; `memory_end`: where what is memory ends, when there is more;
    `cpus`: those that there are of `topology` from the start."""

    cpus: int
    memory: int
    memory_end: int = 0
    topology: Topology | None = None  # None: as many cores as CPUs
    plug_slots: bool = False  # devices of the PCI bus may come and go
    pci: bool = True
    virtio_mmio: int = 0  # number of devices, from index 0
    virtio_mmio_edge: bool = True  # edge: what an irqfd without a resample fd can drive
    serial: bool = False
    rtc: bool = True  # without one the FADT says so, and Linux does not poll for it
    i8042: bool = False
    pvpanic: bool = False
    firmware: bool = False  # places the tables and the BARs itself: no ECAM, wider windows, and a PM timer


def install(memory: GuestMemory, config: AcpiConfig) -> GuestAddress:
    """Write the tables to their place. Returns the address of the RSDP."""
    memory.write(layout.ACPI, build(config))
    return layout.ACPI


def build(config: AcpiConfig) -> bytes:
    """The bytes from layout.ACPI on, the RSDP first."""
    out = bytearray(64)  # the RSDP goes here when the XSDT has an address
    dsdt = _place(out, dsdt_table(config))
    facs = _place(out, _facs())
    tables = [_place(out, fadt_table(config, dsdt, facs)), _place(out, madt_table(config))]
    if config.pci and not config.firmware:
        tables.append(_place(out, mcfg_table()))
    # kvm-unit-tests knows only the RSDT, 64-bit kernels prefer the XSDT.
    rsdt = _place(out, _table(b"RSDT", 1, pack(f"<{len(tables)}I", *tables)))
    xsdt = _place(out, _table(b"XSDT", 1, pack(f"<{len(tables)}Q", *tables)))
    out[:36] = _rsdp(rsdt, xsdt)
    if len(out) > layout.ACPI_END - layout.ACPI:
        raise ValueError(f"{len(out)} bytes of ACPI tables do not fit")
    return bytes(out)


def _place(out: bytearray, table: bytes) -> int:
    """Append `table` at a multiple of 64 (FACS needs it); returns its guest-physical address."""
    address = layout.ACPI + len(out)
    out += table
    out += bytes(-len(out) % 64)
    return address


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (§5.2.6): signature, length, revision, checksum, OEM and creator."""
    tail = _OEM_ID + b"UNIKVM  " + pack("<I", 1) + b"UNIK" + pack("<I", 1)
    head = signature + pack("<IB", _HEADER_SIZE + len(body), revision)
    return head + bytes((_checksum(head + tail + body),)) + tail + body


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    """§5.2.5.3; two checksums: of the ACPI 1.0 part, and of the whole."""
    first = b"RSD PTR " + b"\0" + _OEM_ID + pack("<BI", 2, rsdt)
    first = first[:8] + bytes((_checksum(first),)) + first[9:]
    second = first + pack("<IQ", 36, xsdt) + bytes(4)
    return second[:32] + bytes((_checksum(second),)) + bytes(3)


def _facs() -> bytes:
    """§5.2.10: no waking vector, no global lock. Demanded of machines that are not hardware-reduced."""
    return b"FACS" + pack("<I", 64) + bytes(24) + b"\x02" + bytes(31)


# FADT (§5.2.9)
_BOOT_ARCH_LEGACY_DEVICES = 1 << 0
_BOOT_ARCH_8042 = 1 << 1
_BOOT_ARCH_NO_VGA = 1 << 2
_BOOT_ARCH_NO_ASPM = 1 << 4
_BOOT_ARCH_NO_CMOS_RTC = 1 << 5
_FLAG_WBINVD = 1 << 0
_FLAG_PROC_C1 = 1 << 2
_FLAG_NO_SLEEP_BUTTON = 1 << 5
_FLAG_RTC_NOT_FIXED = 1 << 6
_FLAG_RESET_REGISTER = 1 << 10
_PROFILE_ENTERPRISE_SERVER = 4
_NO_C2, _NO_C3 = 0xFFF, 0xFFF  # latencies over 100 and 1000 µs mean that there is no such state
_SYSTEM_IO = 1
_BYTE_ACCESS, _WORD_ACCESS, _DWORD_ACCESS = 1, 2, 3


def _gas(port: int, bits: int, access: int) -> bytes:
    """Generic address structure (§5.2.3.2) of a port."""
    return pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, port)


def fadt_table(config: AcpiConfig, dsdt: int, facs: int) -> bytes:
    """Fixed hardware: PM1a, SCI and reset register. No SMI command: ACPI mode is on from the start.

    A PM timer (optional since ACPI 5.0) is for firmware alone: KVM's clock is better, and reading one is an exit.
    """
    timer, timer_size = (layout.PM_TIMER, layout.PM_TIMER_SIZE) if config.firmware else (0, 0)
    boot_arch = _BOOT_ARCH_NO_VGA | _BOOT_ARCH_NO_ASPM
    boot_arch |= _BOOT_ARCH_LEGACY_DEVICES if config.serial or config.i8042 else 0
    boot_arch |= _BOOT_ARCH_8042 if config.i8042 else 0
    boot_arch |= 0 if config.rtc else _BOOT_ARCH_NO_CMOS_RTC
    flags = _FLAG_WBINVD | _FLAG_PROC_C1 | _FLAG_NO_SLEEP_BUTTON | _FLAG_RTC_NOT_FIXED | _FLAG_RESET_REGISTER
    no_register = bytes(12)
    body = b"".join(
        (
            pack("<IIBBH", facs, dsdt, 0, _PROFILE_ENTERPRISE_SERVER, layout.SCI_IRQ),
            pack("<IBBBB", 0, 0, 0, 0, 0),  # SMI_CMD and its values
            pack("<8I", layout.PM1A_EVENT, 0, layout.PM1A_CONTROL, 0, 0, timer, 0, 0),
            pack("<8B", layout.PM1A_EVENT_SIZE, layout.PM1A_CONTROL_SIZE, 0, timer_size, 0, 0, 0, 0),
            pack("<HHHHBB", _NO_C2, _NO_C3, 0, 0, 0, 0),
            pack("<BBB", 0, 0, 0x32 if config.rtc else 0),  # alarm day and month: none; the century's CMOS index
            pack("<HBI", boot_arch, 0, flags),
            _gas(layout.RESET_REGISTER, 8, _BYTE_ACCESS),
            pack("<BHB", layout.RESET_VALUE, 0, 0),
            pack("<QQ", 0, dsdt),
            _gas(layout.PM1A_EVENT, 8 * layout.PM1A_EVENT_SIZE, _WORD_ACCESS),
            no_register,
            _gas(layout.PM1A_CONTROL, 8 * layout.PM1A_CONTROL_SIZE, _WORD_ACCESS),
            no_register * 2,
            _gas(timer, 8 * timer_size, _DWORD_ACCESS) if timer else no_register,
            no_register * 4,
            bytes(8),  # hypervisor vendor identity
        )
    )
    return _table(b"FACP", 6, body)


# MADT (§5.2.12)
_MADT_PCAT_COMPAT = 1 << 0  # there are 8259s as well
_POLARITY_HIGH, _TRIGGER_LEVEL = 1, 3 << 2
_ALL_PROCESSORS = 0xFF
_ALL_PROCESSORS_X2APIC = 0xFFFF_FFFF
_ENABLED, _ONLINE_CAPABLE = 1, 2


def madt_table(config: AcpiConfig) -> bytes:
    """Interrupt controllers: local APICs (processor UID = vCPU number), also those of CPUs that may come, the IOAPIC,
    and its overrides."""
    body = pack("<II", layout.LAPIC, _MADT_PCAT_COMPAT)
    topology = _topology(config)
    for cpu in range(topology.cpus):
        apic_id, flags = topology.apic_id(cpu), _ENABLED if cpu < config.cpus else _ONLINE_CAPABLE
        if apic_id < XAPIC_IDS:
            body += pack("<BBBBI", 0, 8, cpu, apic_id, flags)
        else:
            body += pack("<BBHIII", 9, 16, 0, apic_id, flags, cpu)
    body += pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0)
    level = _POLARITY_HIGH | _TRIGGER_LEVEL
    overrides = [(layout.TIMER_IRQ, layout.TIMER_GSI, 0), (layout.SCI_IRQ, layout.SCI_IRQ, level)]
    if _plugs_cpus(config) or config.plug_slots:
        overrides.append((layout.PLUG_IRQ, layout.PLUG_IRQ, level))
    for irq, gsi, flags in overrides:
        body += pack("<BBBBIH", 2, 10, 0, irq, gsi, flags)
    body += pack("<BBBHB", 4, 6, _ALL_PROCESSORS, 0, 1)  # NMI on LINT1
    if topology.last_id >= XAPIC_IDS:
        body += pack("<BBHIB3x", 10, 12, 0, _ALL_PROCESSORS_X2APIC, 1)
    return _table(b"APIC", 5, body)


def _topology(config: AcpiConfig) -> Topology:
    return config.topology or Topology(cores=config.cpus)


def _plugs_cpus(config: AcpiConfig) -> bool:
    """Whether more CPUs may come than there are at the start."""
    return _topology(config).cpus > config.cpus


def mcfg_table() -> bytes:
    """PCI Firmware 3.2 §4.1.2: ECAM of segment 0, of the buses that there are."""
    return _table(b"MCFG", 1, bytes(8) + pack("<QHBB4x", layout.ECAM, 0, 0, layout.PCI_BUSES - 1))


def dsdt_table(config: AcpiConfig) -> bytes:
    """Devices that cannot be enumerated, and \\_S5."""
    devices = []
    if config.pci:
        devices.append(_pci_root(config))
    devices += [_virtio_mmio(index, config.virtio_mmio_edge) for index in range(config.virtio_mmio)]
    if config.serial:
        crs = aml.resources(aml.io(layout.COM1, layout.COM1_SIZE), aml.irq(layout.COM1_IRQ))
        devices.append(_pnp("COM1", aml.eisa_id("PNP0501"), 1, crs))
    if config.rtc:
        crs = aml.resources(aml.io(layout.RTC, 2), aml.irq(layout.RTC_IRQ))
        devices.append(_pnp("RTC", aml.eisa_id("PNP0B00"), 0, crs))
    if config.i8042:
        ports = aml.io(layout.I8042_DATA, 1) + aml.io(layout.I8042_COMMAND, 1)
        crs = aml.resources(ports, aml.irq(layout.KEYBOARD_IRQ))
        devices.append(_pnp("KBD", aml.eisa_id("PNP0303"), 0, crs))
    if config.pvpanic:
        devices.append(_pnp("PEVT", aml.string("QEMU0001"), 0, aml.resources(aml.io(layout.PVPANIC, 1))))
    if _plugs_cpus(config) or config.plug_slots:
        from unikvm.arch.x86_64 import plugging

        if _plugs_cpus(config):
            devices.append(plugging.processors(_topology(config)))
        devices.append(plugging.event_device(cpus=_plugs_cpus(config), slots=config.plug_slots))
    sleep = aml.package(aml.integer(SLEEP_TYPE_S5), aml.integer(SLEEP_TYPE_S5), aml.integer(0), aml.integer(0))
    return _table(b"DSDT", 2, aml.scope("_SB", *devices) + aml.name("_S5", sleep))


def _pnp(path: str, hid: bytes, uid: int, crs: bytes, *more: bytes) -> bytes:
    names = aml.name("_HID", hid) + aml.name("_UID", aml.integer(uid)) + aml.name("_CRS", crs)
    return aml.device(path, names, *more)


def _pci_root(config: AcpiConfig) -> bytes:
    """The host bridge. No _OSC, so Linux leaves PCIe services and link power alone; no _PRT: there is no
    INTx."""
    end = config.memory_end or layout.ram_end(config.memory)
    low, high = (layout.PCI_MMIO32, layout.PCI_MMIO32_END), layout.pci_mmio64(end)
    if config.firmware:
        low, high = layout.firmware_mmio32(config.memory), layout.firmware_mmio64(end)
    crs = aml.resources(aml.bus_window(0, layout.PCI_BUSES - 1), aml.memory_window32(*low), aml.memory_window64(*high))
    slots = b""
    if config.plug_slots:
        from unikvm.arch.x86_64 import plugging

        slots = plugging.slots()
    return _pnp(
        "PCI0",
        aml.eisa_id("PNP0A08"),
        0,
        crs,
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        slots,
    )


def _virtio_mmio(index: int, edge: bool) -> bytes:
    """LNRO0005: the HID that Linux's virtio_mmio knows."""
    address, gsi = layout.virtio_mmio(index)
    crs = aml.resources(
        aml.memory32(address, layout.VIRTIO_MMIO_SIZE),
        aml.interrupt(gsi, edge=edge),
    )
    return _pnp(f"VR{index:02X}", aml.string("LNRO0005"), index, crs)
