# SPDX-License-Identifier: GPL-2.0-only
"""What a machine has more when PC firmware starts it, instead of a loader of ours. Imported for those runs alone.

Variables that are not kept are ROM: OVMF then has a copy of its own in RAM, and each byte of the some ten thousand that
it writes at a first boot is not two exits.
"""

from __future__ import annotations

import fcntl
import os

from unikvm.arch.x86_64 import acpi, acpi_loader, layout
from unikvm.boot import firmware as image
from unikvm.devices import fwcfg, i440fx
from unikvm.devices.firmware_ports import DebugConsole, PmTimer, SystemControl
from unikvm.devices.pflash import Pflash
from unikvm.errors import CannotRun
from unikvm.uapi.kvm import KVM_MEM_READONLY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.machine.builder import Parts
    from unikvm.machine.config import Firmware
    from unikvm.memory import GuestMemory, Region
    from unikvm.pci import PciBus

    Say = Callable[[str], object]

_FIRST_SLOT = 400  # of KVM's memory slots: far from those of RAM


class Board:
    """The firmware of one machine: its flash, and the chipset that it expects."""

    def __init__(self, config: Firmware, memory: GuestMemory, closables: list[Callable[[], None]]) -> None:
        self._config = config
        self._kept = _open_kept(config.vars) if config.keep else -1
        if self._kept >= 0:
            closables.append(lambda: os.close(self._kept))
        self.entry, self._flash = image.load(config.code, config.vars, memory)
        closables.append(self._flash.close)
        self.variables: Pflash | None = None

    def plug(self, parts: Parts, reset: Callable[[], None], say: Say) -> None:
        """The flash and the ports."""
        for slot, region in enumerate(self._flash.regions, _FIRST_SLOT):
            _map(parts, slot, region)
        if self._kept >= 0:
            self._plug_variables(parts, _FIRST_SLOT, self._flash.regions[0])
        parts.pio.add(layout.SYSTEM_CONTROL, 1, SystemControl(reset))
        parts.pio.add(layout.PM_TIMER, layout.PM_TIMER_SIZE, PmTimer())
        if self._config.debug:
            parts.pio.add(layout.DEBUG_CONSOLE, 1, DebugConsole(lambda line: say(f"firmware: {line}")))

    def _plug_variables(self, parts: Parts, slot: int, region: Region) -> None:
        array = self._flash.view(region.gpa, region.size)

        def keep(start: int, end: int) -> None:
            os.pwrite(self._kept, array[start:end], start)

        self.variables = Pflash(array, lambda visible: _map(parts, slot, region, visible), keep)
        parts.mmio.add(region.gpa, region.size, self.variables)

    def describe(self, parts: Parts, tables: acpi.AcpiConfig) -> None:
        """fw_cfg, with the ACPI tables in it."""
        config = parts.config
        files = {**image.files(config.memory), **acpi_loader.files(tables)}
        items = fwcfg.numbers(memory=config.memory, cpus=config.cpus, apic_ids=config.all_topology.last_id + 1)
        parts.pio.add(layout.FW_CFG, layout.FW_CFG_SIZE, fwcfg.FwCfg(items, files, parts.memory))


def add_bridges(bus: PciBus) -> None:
    """What stands at 00:00.0, and in slot 1."""
    bus.add(i440fx.host_bridge(), 0)
    bus.add(i440fx.isa_bridge(), 1, 0)
    bus.add(i440fx.power_management(layout.PM1A_EVENT), 1, 3)


def _map(parts: Parts, slot: int, region: Region, visible: bool = True) -> None:
    """Let the guest read `region`; its writes, and reads while it is not visible, are exits."""
    size = region.size if visible else 0
    parts.vm.set_user_memory_region(slot, region.gpa, size, region.hva, KVM_MEM_READONLY)


def _open_kept(path: str) -> int:
    """The file that the variables are written back to. Two guests with one file would spoil it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CannotRun(
            f"cannot open {path}: {error.strerror}", hint="vars= needs a file that may be written"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CannotRun(f"{path} is in use by another guest", hint="give each guest its own vars=FILE") from None
    return fd
