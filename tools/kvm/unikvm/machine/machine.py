# SPDX-License-Identifier: GPL-2.0-only
"""A machine as a library: build it, hook it, run it, and get a typed event for its end."""

from __future__ import annotations

import sys
import time

from unikvm.errors import CannotRun, UnikvmError
from unikvm.lean import Empty, SimpleQueue
from unikvm.machine.builder import Parts, build
from unikvm.machine.config import Config, Disk, Net
from unikvm.machine.events import Event, Stopped, Timeout
from unikvm.memory import GuestMemory
from unikvm.record import Record
from unikvm.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from unikvm.machine.hotplug import Hotplug
    from unikvm.machine.newvm import NewVm
    from unikvm.machine.ram import Ram
    from unikvm.virtio.balloon import Balloon
    from unikvm.virtio.device import VirtioDevice

    Handler = Callable[["Access"], int | None]


SWITCH_SECONDS = 0.0005  # a vCPU with an exit waits so long for a thread that computes; the default is ten times that


class Access(Record):
    """One access of the guest to a hooked address: `value` is what a write stores, 0 for a read; `size` in bytes."""

    address: int
    size: int
    is_write: bool
    value: int


class _Hook:
    """A bus device that asks `handler`; None answers a read with all ones, as an unclaimed address does."""

    def __init__(self, start: int, handler: Handler) -> None:
        self._start = start
        self._handler = handler

    def read(self, offset: int, size: int) -> int:
        ones = (1 << (8 * size)) - 1
        value = self._handler(Access(self._start + offset, size, False, 0))
        return ones if value is None else value & ones

    def write(self, offset: int, size: int, value: int) -> None:
        self._handler(Access(self._start + offset, size, True, value))


class Machine:
    """One virtual machine, made of a `Config` or of its fields (`memory` and `max_memory` also as "256M").

    Use it as a context manager: leaving it ends the guest and releases everything. `run` is `start` and `wait`.
    Without an `output`, what the guest prints on its console collects in `console`. `say` is told in a line when a
    back end is lost, or back. `new`: a VM that was begun before, and is the machine's from now on.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        output: Callable[[bytes], object] | None = None,
        devices: tuple[VirtioDevice, ...] = (),
        say: Callable[[str], object] = lambda _line: None,
        new: NewVm | None = None,
        memory: int | str | None = None,
        max_memory: int | str | None = None,
        **fields: object,
    ) -> None:
        if config is None:
            for name, size in (("memory", memory), ("max_memory", max_memory)):
                if size is not None:
                    fields[name] = parse_size(size) if isinstance(size, str) else size
            config = Config(**fields)  # type: ignore[arg-type]
        self.config = config
        self.console = bytearray()
        self._say = say
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._end: Event | None = None
        self._parts: Parts = build(config, output or self.console.extend, devices, self._events.put, say, new)
        self._closed = False

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM."""
        return self._parts.memory

    @property
    def kernel_half(self) -> str:
        """The release of the kernel half that accounts for this machine; empty where none is attached."""
        companion = self._parts.companion
        return companion.info.release if companion is not None else ""

    @property
    def parts(self) -> Parts:
        """What the machine is built of."""
        return self._parts

    def on_pio(self, ports: range, handler: Handler) -> None:
        """Call `handler` for each access of the guest to `ports`. Before `start`; runs on the vCPU's thread."""
        self._parts.pio.add(ports.start, len(ports), _Hook(ports.start, handler))

    def on_mmio(self, addresses: range, handler: Handler) -> None:
        """Call `handler` for each access of the guest to `addresses` (outside RAM). As `on_pio`."""
        self._parts.mmio.add(addresses.start, len(addresses), _Hook(addresses.start, handler))

    def send(self, text: bytes) -> None:
        """Type on the guest's console."""
        self._parts.serial_input.feed(text)

    @property
    def balloon(self) -> Balloon:
        """The balloon of a machine that has one (`balloon=True`)."""
        balloon = self._ram.balloon
        if balloon is None:
            raise UnikvmError("the guest has no balloon", hint="--mem ...,balloon")
        return balloon

    def resize(self, size: int | str) -> None:
        """Ask the guest to have so much memory, in bytes or as "1G", from now on. From any thread."""
        self._ram.resize(parse_size(size) if isinstance(size, str) else size)

    @property
    def memory_size(self) -> tuple[int, int]:
        """Bytes of memory that the guest is asked to have, and that it has."""
        ram = self._parts.ram
        return (ram.wanted, ram.actual) if ram is not None else (self.config.memory, self.config.memory)

    def memory_statistics(self, timeout: float = 5.0) -> dict[str, int]:
        """What the guest says of its memory now: names as in `unikvm.virtio.balloon.NAMES`. Not on the io thread."""
        answers: SimpleQueue[dict[str, int]] = SimpleQueue()
        self._ram.statistics(answers.put)
        try:
            return answers.get(timeout=timeout)
        except Empty:
            raise UnikvmError(f"the guest does not say within {timeout:g} s how its memory is used") from None

    def grow_disk(self, path: str, size: int | str = 0) -> None:
        """Make the disk whose image is `path` larger, to so many bytes or "20G"; without a size the guest gets what the
        image has become by itself. The guest is told at once. Not on the io thread: it waits for the host."""
        from unikvm.machine import disks

        disks.grow(self._parts, path, parse_size(size) if isinstance(size, str) else size)

    @property
    def _ram(self) -> Ram:
        if self._parts.ram is None:
            raise UnikvmError("the guest's memory stays as it is", hint="--mem ...,balloon or --mem ...,max=")
        return self._parts.ram

    def start(self) -> None:
        """Let the vCPUs run."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._parts.io.start()
        for vcpu in self._parts.vcpus:
            vcpu.start()

    def post(self, event: Event) -> None:
        """End the run with `event`, from any thread."""
        self._events.put(event)

    def wait(self, timeout: float | None = None) -> Event:
        """The event that ends the run; after `timeout` seconds a `Timeout`. The guest stands still afterwards."""
        if self._end is None:
            try:
                self._end = self._events.get(timeout=timeout)
            except Empty:
                self._end = Timeout(timeout or 0.0)
            self._halt()
        return self._end

    def run(self, timeout: float | None = None) -> Event:
        """Boot the guest and wait for its end."""
        self.start()
        return self.wait(timeout)

    def expect(self, text: bytes, timeout: float = 60.0) -> bytes:
        """Wait until the console shows `text`; returns all that it showed. TimeoutError when it does not in time,
        UnikvmError when the run ends without it.
        """
        deadline = time.monotonic() + timeout
        while text not in self.console:
            if not self._events.empty() or self._end is not None:
                event = self.wait()
                if text in self.console:  # a device had still to give it
                    break
                raise UnikvmError(f"the run ended before the console showed {text!r}: {event}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the console did not show {text!r} within {timeout:g} s")
            time.sleep(0.005)
        return bytes(self.console)

    @property
    def ending(self) -> bool:
        """Whether the run is over: an `output` that waits for somebody has to give up then, as its vCPU must end."""
        return self._end is not None or self._closed

    def stop(self) -> None:
        """End the run from outside; `wait` then gives `Stopped` unless the guest was faster."""
        self._events.put(Stopped())

    # Devices and vCPUs that come and go. These wait for the guest: not from the io thread, or a vCPU's.

    def attach(self, device: VirtioDevice | Disk | Net) -> str:
        """Plug in a device (with Config's `hotplug`), a Disk or a Net; the address that the guest finds it at.

        It takes the lowest free slot. A device that cannot be plugged in is discarded.
        """
        return self._hotplug().attach(self._maker(device))

    def detach(self, address: str, *, seconds: float = 10.0, force: bool = False) -> None:
        """Ask the guest to let go of the device at `address`, and release it; CannotRun where it does not within
        `seconds`. With `force` it is then taken all the same.
        """
        self._hotplug().detach(address, seconds=seconds, force=force)

    def set_cpus(self, count: int, *, seconds: float = 10.0) -> None:
        """Give the guest vCPUs, of those that its topology has places for, or take some back, as `detach` does."""
        self._hotplug().set_cpus(count, seconds=seconds)

    def cpus(self) -> list[dict[str, object]]:
        """Every vCPU that the guest has, or may get: its number, APIC ID, state, and its CPU of the host if pinned."""
        hotplug, topology = self._parts.hotplug, self.config.all_topology
        enabled = hotplug.cpus.enabled if hotplug is not None else (True,) * self.config.cpus
        pin = self.config.pin
        return [
            {
                "cpu": index,
                "apic_id": topology.apic_id(index),
                "state": "on" if on else "off",
                **({"pinned": pin[index % len(pin)]} if pin else {}),
            }
            for index, on in enumerate(enabled)
        ]

    def devices(self) -> list[dict[str, object]]:
        """The address and the kind of every PCI device, in order; of a disk its image and its size as well."""
        from unikvm.machine.disks import facts
        from unikvm.machine.hotplug import virtio_devices

        bus = self._parts.pci
        found = virtio_devices(bus) if bus else []
        return [{"address": address, "device": device.name, **facts(device)} for address, device in found]

    def _hotplug(self) -> Hotplug:
        if self._parts.hotplug is None:
            raise CannotRun(
                "nothing comes or goes in this guest",
                hint="a Linux guest on PCI, with a name or a terminal; --cpus 2,max=8",
            )
        return self._parts.hotplug

    def _maker(self, device: VirtioDevice | Disk | Net) -> Callable[[], VirtioDevice]:
        from unikvm.machine.builder import make_disk, make_net

        if isinstance(device, Disk):
            return lambda: make_disk(device, self._say)
        if isinstance(device, Net):
            return lambda: make_net(device, self._say)
        return lambda: device

    def _halt(self) -> None:
        if self._parts.hotplug is not None:
            self._parts.hotplug.stop()
        for vcpu in self._parts.vcpus:
            vcpu.stop()
        for vcpu in self._parts.vcpus:
            vcpu.join()
        self._parts.io.stop()

    def close(self) -> None:
        """End the guest and release its memory and descriptors. Twice is once."""
        if not self._closed:
            self._closed = True
            self._halt()
            self._parts.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
