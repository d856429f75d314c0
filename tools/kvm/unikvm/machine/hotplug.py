# SPDX-License-Identifier: GPL-2.0-only
"""Devices and vCPUs that come and go while the guest runs.

What comes is made on a thread of its own, `plugs`, which lives as long as the machine: back ends take their time, and
the kernel ends them with the thread that started them. What goes is asked for; the guest lets go on a vCPU's thread,
its addresses answer no more from then on, and `plugs` releases the rest. Callers wait, on threads of their own: never
on the io thread, never on a vCPU's.
"""

from __future__ import annotations

import time

from unikvm.arch.x86_64 import layout
from unikvm.devices.plug import CpuPlug, PciPlug, PlugLine
from unikvm.errors import CannotRun, UnikvmError
from unikvm.lean import Empty, Lock, SimpleQueue
from unikvm.machine.platform import pci_function
from unikvm.sys.thread import Thread
from unikvm.uapi.virtio import VIRTIO_ID_CONSOLE
from unikvm.virtio.pci import VirtioPci

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unikvm.machine.builder import Parts
    from unikvm.machine.cpus import Processors
    from unikvm.pci import PciBus
    from unikvm.virtio.device import VirtioDevice

PATIENCE = 10.0  # seconds that a guest has to let go
_WHOLE_BUS = 0  # the host bridge's slot: the guest is to look for what is missing
_OST_EJECT = (3, 0x103)  # events of _OST that answer an eject request (ACPI 6.5 §6.3.5)


def format_address(devfn: int) -> str:
    return f"00:{devfn >> 3:02x}.{devfn & 7}"


def parse_address(text: str) -> int:
    """The devfn of `[[0000:]00:]05.0`. CannotRun where it is none."""
    slot, dot, function = text.removeprefix("0000:").removeprefix("00:").partition(".")
    try:
        devfn = int(slot, 16) << 3 | int(function, 16) if dot else -1
    except ValueError:
        devfn = -1
    if not 0 <= devfn < layout.PCI_SLOTS << 3:
        raise CannotRun(f"{text!r} is not the address of a device", hint="as 00:05.0")
    return devfn


def virtio_devices(bus: PciBus) -> list[tuple[str, VirtioDevice]]:
    """Every virtio device on `bus` with its address, in order."""
    with bus.lock:
        found = sorted(bus.functions.items())
    return [(format_address(devfn), f.device) for devfn, f in found if isinstance(f, VirtioPci)]


class Hotplug:
    """Comings and goings of one machine. Lock order: `_lock` protects `_leaving`, and is a leaf."""

    def __init__(self, parts: Parts, processors: Processors, bus: PciBus | None) -> None:
        config = parts.config
        self._parts = parts
        self._processors = processors
        self._bus = bus if config.hotplug else None
        self._lock = Lock()
        self._leaving: dict[tuple[str, int], SimpleQueue[str]] = {}  # who waits for what; it gets why not, or ""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(self._work, "plugs")
        line = PlugLine(parts.irq.line(layout.PLUG_IRQ))
        self.pci = PciPlug(line, self._slot_ejected)
        there = tuple(index < config.cpus for index in range(config.all_cpus))
        self.cpus = CpuPlug(line, there, self._cpu_ejected, self._cpu_reported)
        parts.pio.add(layout.PCI_PLUG, layout.PCI_PLUG_SIZE, self.pci)
        parts.pio.add(layout.CPU_PLUG, layout.CPU_PLUG_SIZE, self.cpus)

    # The thread `plugs`

    def stop(self) -> None:
        """End the thread; nothing comes or goes any more."""
        if self._thread.alive:
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _do(self, job: Callable[[], Any]) -> Any:
        """Run `job` on the thread and wait; raises what it raises."""
        if self._thread.ident is None:
            self._thread.start()
        done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                done.put((job(), None))
            except BaseException as error:
                done.put((None, error))

        self._jobs.put(run)
        result, error = done.get()
        if error is not None:
            raise error
        return result

    # Devices

    def attach(self, make: Callable[[], VirtioDevice]) -> str:
        """Plug in the device that `make` makes, in the lowest free slot; its address."""
        bus = self._slots()
        return str(self._do(lambda: self._attach(bus, make())))

    def _attach(self, bus: PciBus, device: VirtioDevice) -> str:
        parts = self._parts
        try:
            if device.shares_memory and parts.memory.fd < 0:
                raise CannotRun("the guest's memory is not shared with other processes, as this device needs")
            function = pci_function(parts, device)
        except BaseException:
            device.discard()
            raise
        try:
            devfn = bus.add(function)
        except UnikvmError:
            function.close()
            raise CannotRun("the guest's PCI bus is full", hint="detach something") from None
        parts.closables.append(function.close)
        self.pci.came(devfn >> 3)
        return format_address(devfn)

    def detach(self, address: str, *, seconds: float = PATIENCE, force: bool = False) -> None:
        """Ask the guest to let go of a device, and release it. With `force` it goes after `seconds` whatever the guest
        says, as if somebody had pulled it out. CannotRun where the guest keeps it.
        """
        bus = self._slots()
        devfn = parse_address(address)
        function = bus.functions.get(devfn)
        if not isinstance(function, VirtioPci):
            there = ", ".join(f"{place} ({device.name})" for place, device in virtio_devices(bus))
            raise CannotRun(f"there is no device at {address}", hint=f"there are {there}" if there else "")
        if function.device.device_id == VIRTIO_ID_CONSOLE:
            raise CannotRun(f"{address} is the guest's console, which stays")
        slot = devfn >> 3
        gone = self._expect("slot", slot)
        try:
            self.pci.ask(slot)
            if self._came_true(gone, seconds) == "":
                return
            self.pci.forget(slot)
            if not force:
                raise CannotRun(
                    f"the guest did not let go of {address} within {seconds:g} s", hint="--force takes it all the same"
                )
            self._take(slot, ghost=True)
            self.pci.came(_WHOLE_BUS)
            gone.get()
        finally:
            self._expect_no_more("slot", slot)

    def _slots(self) -> PciBus:
        if self._bus is None:
            raise CannotRun("this guest was started without room for more devices", hint="name it: unikvm run -n NAME")
        return self._bus

    def _slot_ejected(self, slot: int) -> None:
        """On a vCPU's thread, at the guest's word; it may say so of any slot, unasked."""
        bus = self._bus
        function = bus.functions.get(slot << 3) if bus is not None else None
        if isinstance(function, VirtioPci) and function.device.device_id != VIRTIO_ID_CONSOLE:
            self.pci.forget(slot)
            self._take(slot)

    def _take(self, slot: int, *, ghost: bool = False) -> None:
        """Take the device out of the bus at once, and release the rest on `plugs`."""
        function = self._bus.remove(slot << 3, ghost=ghost) if self._bus is not None else None
        if isinstance(function, VirtioPci):
            if self._thread.ident is None:
                self._thread.start()
            self._jobs.put(lambda: self._release(slot, function))

    def _release(self, slot: int, function: VirtioPci) -> None:
        closables = self._parts.closables
        for close in (function.close, function.device.discard):
            if close in closables:
                closables.remove(close)
        function.close()
        function.device.discard()
        self._parts.irq.commit()  # without its messages
        self._tell("slot", slot, "")

    # vCPUs

    def set_cpus(self, count: int, *, seconds: float = PATIENCE) -> None:
        """Give the guest vCPUs, or ask it for some back, until it has `count`. CannotRun where it keeps them."""
        config = self._parts.config
        if not 1 <= count <= config.all_cpus:
            raise CannotRun(
                f"this guest has at most {config.all_cpus} CPUs",
                hint="" if config.all_cpus > config.cpus else "start it with room: --cpus 2,max=8",
            )
        while (there := self.cpus.enabled).count(True) < count:
            self._do(self._giver(there.index(False)))
        surplus = [index for index, enabled in enumerate(there) if enabled][count:]
        self._take_back(surplus[::-1], seconds)

    def _giver(self, index: int) -> Callable[[], None]:
        """What makes vCPU `index` run, and tells the guest."""
        vcpus = self._parts.vcpus

        def give() -> None:
            if index < len(vcpus):
                vcpus[index] = self._processors.revive(vcpus[index])
            else:
                vcpus.append(self._processors.add(index))
            vcpus[index].start()
            self.cpus.insert(index)

        return give

    def _take_back(self, cpus: list[int], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        waits = [(cpu, self._expect("cpu", cpu)) for cpu in cpus]
        try:
            for cpu in cpus:
                self.cpus.ask(cpu)
            for cpu, gone in waits:
                why = self._came_true(gone, max(0.0, deadline - time.monotonic()))
                if why != "":
                    raise CannotRun(f"the guest keeps CPU {cpu}: {why or f'no answer within {seconds:g} s'}")
        finally:
            for cpu in cpus:
                self.cpus.forget(cpu)
                self._expect_no_more("cpu", cpu)

    def _cpu_ejected(self, cpu: int) -> None:
        """On a vCPU's thread, which may be its own."""
        self._parts.vcpus[cpu].stop()
        self._tell("cpu", cpu, "")

    def _cpu_reported(self, cpu: int, event: int, status: int) -> None:
        # 0x84 says that it is under way.
        if event in _OST_EJECT and status not in (0, 0x84):
            self._tell("cpu", cpu, f"it answered with status {status:#x}")

    # Who waits

    def _expect(self, kind: str, number: int) -> SimpleQueue[str]:
        with self._lock:
            if (kind, number) in self._leaving:
                raise CannotRun(f"the guest has been asked for {kind} {number} already")
            queue = self._leaving[kind, number] = SimpleQueue()
            return queue

    def _expect_no_more(self, kind: str, number: int) -> None:
        with self._lock:
            self._leaving.pop((kind, number), None)

    def _tell(self, kind: str, number: int, why: str) -> None:
        with self._lock:
            queue = self._leaving.get((kind, number))
        if queue is not None:
            queue.put(why)

    @staticmethod
    def _came_true(gone: SimpleQueue[str], seconds: float) -> str | None:
        """An empty string when it went, else the guest's answer; None: nothing within `seconds`."""
        try:
            return gone.get(timeout=seconds)
        except Empty:
            return None
