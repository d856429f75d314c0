# SPDX-License-Identifier: GPL-2.0-only
"""The PC around the vCPUs: legacy devices, the power buttons' other end, and the buses of virtio devices."""

from __future__ import annotations

from unikvm.arch.x86_64 import acpi, layout
from unikvm.devices.acpipm import AcpiPm
from unikvm.devices.debugexit import DebugExit as DebugExitPort
from unikvm.devices.i8042 import I8042
from unikvm.devices.pit import Pit
from unikvm.devices.pvpanic import PvPanic
from unikvm.devices.rtc import Rtc
from unikvm.devices.serial import Serial
from unikvm.machine.events import DebugExit, Event, Panic, PowerOff, Reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.bus import BusDevice
    from unikvm.machine.builder import Parts
    from unikvm.machine.firmware import Board
    from unikvm.virtio.device import VirtioDevice
    from unikvm.virtio.pci import VirtioPci

SECONDS_FOR_LAST_WORDS = 0.05  # the console's bytes are still on the io thread's way when a vCPU reports the end
PVPANIC_PANICKED = 1 << 0


class Ending:
    """What the guest did to end the run, as events; what its console said tells a panic from an orderly end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def sleep(self, _kind: int) -> None:
        """The guest entered the only sleep state on offer, S5."""
        self._later(PowerOff())

    def reset(self, source: str) -> Callable[[], None]:
        return lambda: self._later(Reset(source))

    def panic(self, events: int) -> None:
        """pvpanic was written."""
        if events & PVPANIC_PANICKED:
            self._later(Panic("the guest panicked (pvpanic)"))

    def _later(self, event: Event) -> None:
        loop = self._parts.io.loop
        loop.call_soon(lambda: loop.call_later(SECONDS_FOR_LAST_WORDS, lambda: self._say(event)))

    def _say(self, event: Event) -> None:
        text = "" if isinstance(event, PowerOff) else self._parts.panics.text()
        self._parts.post(Panic(text) if text else event)


def add_platform(parts: Parts, output: Callable[[bytes], object], ending: Ending) -> None:
    """The PC's own devices, at their fixed ports."""
    config, line, post = parts.config, parts.irq.line, parts.post

    def print_serial(data: bytes) -> None:
        parts.panics.feed(data)
        output(data)

    high_memory = max(config.memory - layout.LOW_RAM_END, 0)
    parts.serial = Serial(line(layout.COM1_IRQ), print_serial, parts.serial_input.room)
    parts.serial_input.receive = parts.serial.receive
    parts.power = AcpiPm(line(layout.SCI_IRQ), ending.sleep)
    rtc = Rtc(
        line(layout.RTC_IRQ),
        low_memory=config.memory - high_memory,
        high_memory=high_memory,
        cpus=config.cpus,
        schedule=parts.io.schedule,
    )
    pit = Pit(parts.vm)
    devices: tuple[tuple[int, int, BusDevice], ...] = (
        (layout.PIT, layout.PIT_SIZE, pit.timer),
        (layout.SPEAKER, 1, pit.speaker),
        (layout.COM1, layout.COM1_SIZE, parts.serial),
        (layout.RTC, 2, rtc),
        (layout.PM1A_EVENT, layout.PM1A_EVENT_SIZE, parts.power.event),
        (layout.PM1A_CONTROL, layout.PM1A_CONTROL_SIZE, parts.power.control),
        (layout.DEBUG_EXIT, layout.DEBUG_EXIT_SIZE, DebugExitPort(lambda value: post(DebugExit(value)))),
        (layout.PVPANIC, 1, PvPanic(ending.panic)),
    )
    if config.firmware is None:  # which would wait for a keyboard; without a controller there it looks for none
        i8042 = I8042(line(layout.KEYBOARD_IRQ), ending.reset("i8042"))
        devices += ((layout.I8042_DATA, 1, i8042.data), (layout.I8042_COMMAND, 1, i8042.command))
    for start, length, device in devices:
        parts.pio.add(start, length, device)
    if config.testdev:
        _add_testdev(parts)


def _add_testdev(parts: Parts) -> None:
    """What kvm-unit-tests' x86 tests expect of QEMU's `-device pc-testdev`, and the fw_cfg they read."""
    from unikvm.devices import fwcfg
    from unikvm.devices.testdev import TestDev

    def flush_page(gpa: int) -> None:
        # Moving a memory slot away and back makes KVM forget every mapping of it; that of the page among them.
        for slot, region in enumerate(parts.memory.regions):
            if region.gpa <= gpa < region.gpa + region.size:
                parts.vm.set_user_memory_region(slot, region.gpa, 0, region.hva)
                parts.vm.set_user_memory_region(slot, region.gpa, region.size, region.hva)

    testdev = TestDev(lambda line, level: parts.irq.line(line).set(level), flush_page)
    parts.pio.add(layout.TESTDEV_PORTS, 4, testdev.register)
    parts.pio.add(layout.TESTDEV_FLUSH, 4, testdev.flush)
    parts.pio.add(layout.TESTDEV_BYTE_PORTS, 4, testdev.byte_register)
    parts.pio.add(layout.TESTDEV_IRQ_PORTS, layout.TESTDEV_IRQ_COUNT, testdev.lines)
    parts.mmio.add(layout.TESTDEV_MMIO, layout.TESTDEV_MMIO_SIZE, testdev.iomem)
    if parts.config.firmware is None:  # which has a bigger one
        items = fwcfg.numbers(
            memory=parts.config.memory, cpus=parts.config.cpus, apic_ids=parts.config.all_topology.last_id + 1
        )
        parts.pio.add(layout.FW_CFG, 2, fwcfg.FwCfg(items))


def add_virtio(parts: Parts, devices: list[VirtioDevice], ending: Ending, board: Board | None = None) -> None:
    """Plug `devices` in, in their order, and describe the whole to the guest in ACPI tables."""
    config = parts.config
    pci = config.transport == "pci"
    if pci:
        _add_pci(parts, devices, ending, board is not None)
    else:
        _add_mmio(parts, devices, ending)
    tables = acpi.AcpiConfig(
        cpus=config.cpus,
        memory=config.memory,
        topology=config.all_topology,
        plug_slots=config.hotplug,
        memory_end=parts.ram.end if parts.ram else 0,
        pci=pci,
        virtio_mmio=0 if pci else len(devices),
        serial=config.console == "serial",
    )
    if board is None:
        acpi.install(parts.memory, tables)
    else:
        board.describe(parts, tables.replace(firmware=True, serial=True, pvpanic=True))


def _add_pci(parts: Parts, devices: list[VirtioDevice], ending: Ending, firmware: bool) -> None:
    from unikvm.devices.pcihost import ConfigPorts, Ecam, HostBridge
    from unikvm.pci import PciBus

    bus = parts.pci = PciBus(parts.mmio, parts.pio)
    if firmware:
        from unikvm.machine.firmware import add_bridges

        add_bridges(bus)
    else:
        bus.add(HostBridge(), 0)
    for device in devices:
        function = pci_function(parts, device)
        parts.closables.append(function.close)
        bus.add(function)
    if not firmware:
        bus.assign_bars(layout.PCI_MMIO32, layout.PCI_MMIO32_END)
        parts.mmio.add(layout.ECAM, layout.PCI_BUSES * layout.ECAM_BUS_SIZE, Ecam(bus))
    ports = ConfigPorts(bus, ending.reset("port 0xcf9"))
    parts.pio.add(layout.PCI_CONFIG, layout.PCI_CONFIG_SIZE, ports)


def pci_function(parts: Parts, device: VirtioDevice) -> VirtioPci:
    """`device` as a PCI function, connected to its back end; not on the bus yet."""
    from unikvm.virtio.pci import VirtioPci

    return VirtioPci(
        device,
        memory=parts.memory,
        loop=parts.io.loop,
        irq=parts.irq,
        add_ioeventfd=parts.add_ioeventfd,
        remove_ioeventfd=parts.remove_ioeventfd,
    )


def _add_mmio(parts: Parts, devices: list[VirtioDevice], ending: Ending) -> None:
    from unikvm.devices.acpipm import ResetRegister
    from unikvm.virtio.mmio import VirtioMmio

    parts.pio.add(layout.RESET_REGISTER, 1, ResetRegister(ending.reset("port 0xcf9")))
    for index, device in enumerate(devices):
        address, gsi = layout.virtio_mmio(index)
        transport = VirtioMmio(
            device,
            address=address,
            bus=parts.mmio,
            memory=parts.memory,
            loop=parts.io.loop,
            line=parts.irq.line(gsi),
            add_ioeventfd=parts.add_ioeventfd,
            remove_ioeventfd=parts.remove_ioeventfd,
            edge=True,
        )
        parts.closables.append(transport.close)
