# SPDX-License-Identifier: GPL-2.0-only
"""What a machine has more when PC firmware starts it, instead of a loader of ours. Imported for those runs alone.

Variables that are not kept are ROM: OVMF then has a copy of its own in RAM, and none of the writes to it is an exit.
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
from unikvm.lean import Lock
from unikvm.sys.coalesced import CoalescedWrites
from unikvm.uapi.kvm import KVM_MEM_READONLY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.machine.builder import Parts
    from unikvm.machine.config import Firmware
    from unikvm.memory import GuestMemory, Region
    from unikvm.pci import PciBus

    Say = Callable[[str], object]

_LATE = 0.1  # seconds
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

        variables = Variables(parts, slot, region, array, keep)
        parts.closables.append(variables.settle)
        parts.mmio.add(region.gpa, region.size, variables)

    def describe(self, parts: Parts, tables: acpi.AcpiConfig) -> None:
        """fw_cfg, with the ACPI tables in it."""
        config = parts.config
        files = {**image.files(config.memory), **acpi_loader.files(tables)}
        items = fwcfg.numbers(memory=config.memory, cpus=config.cpus, apic_ids=config.all_topology.last_id + 1)
        parts.pio.add(layout.FW_CFG, layout.FW_CFG_SIZE, fwcfg.FwCfg(items, files, parts.memory))


class Variables:
    """The flash with the variables, as the guest reaches it: on the thread of any vCPU.

    The first write of a sequence of commands is an exit, and takes the array away from the guest. From then on KVM
    keeps the writes, and a read is an exit. What KVM has kept is carried out before anything else, and after _LATE
    seconds all the same: nobody has to read what he has written, and the file is to have it.
    """

    def __init__(
        self, parts: Parts, slot: int, region: Region, array: memoryview, changed: Callable[[int, int], None]
    ) -> None:
        self._parts = parts
        self._slot = slot
        self._region = region
        self._lock = Lock()  # a leaf; protects the flash, the ring of writes, and what the guest sees
        self._flash = Pflash(array, self._want, changed)
        self._writes: CoalescedWrites | None = None
        self._visible = self._wanted = True
        self._looks = False  # soon, at what KVM has kept

    def read(self, offset: int, size: int) -> int:
        with self._lock:
            self._catch_up()
            return self._flash.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            self._catch_up()
            self._flash.write(offset, size, value)
            self._show()

    def settle(self) -> None:
        """Carry out what KVM has kept."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        if self._writes is not None:
            for offset, size, value in self._writes.take():
                self._flash.write(offset, size, value)
            self._show()

    def _want(self, visible: bool) -> None:
        self._wanted = visible

    def _show(self) -> None:
        """Let the guest see what the flash wants it to. Once for many commands: KVM takes its time for it."""
        if self._wanted == self._visible:
            return
        self._visible = self._wanted
        if self._writes is None:
            self._writes = CoalescedWrites(
                self._parts.vm, self._parts.vcpus[0].vcpu, self._region.gpa, self._region.size
            )
        if self._visible:
            self._writes.keep(False)
        _map(self._parts, self._slot, self._region, self._visible)
        if not self._visible:
            self._writes.keep(True)
            self._look_later()

    def _look_later(self) -> None:
        """Once, however often the guest takes the array away meanwhile."""
        if not self._looks:
            self._looks = True
            self._parts.io.schedule(_LATE, self._late)

    def _late(self) -> None:
        with self._lock:
            self._looks = False
            self._catch_up()
            if not self._visible:
                self._look_later()


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
