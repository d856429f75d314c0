# SPDX-License-Identifier: GPL-2.0-only
"""Puts a machine together. Adding a device is one file in its room, one test, and one line here or in `platform`."""

from __future__ import annotations

import os

from unikvm.arch.x86_64 import layout
from unikvm.bus import Bus
from unikvm.errors import CannotRun
from unikvm.irq import IrqController
from unikvm.machine.cpus import Processors, check_host
from unikvm.machine.io import IoThread, SerialInput
from unikvm.machine.newvm import NewVm
from unikvm.machine.panicwatch import PanicWatch
from unikvm.machine.vcpu import VcpuThread, install_kick_handler
from unikvm.memory import GuestMemory
from unikvm.record import State
from unikvm.sys.kvm import Kvm, Vm
from unikvm.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.boot.image import Entry
    from unikvm.devices.acpipm import AcpiPm
    from unikvm.devices.serial import Serial
    from unikvm.machine.config import Config, Disk, Net
    from unikvm.machine.events import Event
    from unikvm.machine.firmware import Board
    from unikvm.machine.hotplug import Hotplug
    from unikvm.machine.ram import Ram
    from unikvm.pci import PciBus
    from unikvm.sys.companion import Companion
    from unikvm.virtio.device import VirtioDevice

    Post = Callable[["Event"], None]
    Say = Callable[[str], object]


class Parts(State):
    """What a machine is built of. `closables` release what was made, in reverse order."""

    config: Config
    post: Post
    kvm: Kvm
    vm: Vm
    memory: GuestMemory
    io: IoThread
    irq: IrqController
    pio: Bus
    mmio: Bus
    panics: PanicWatch
    serial_input: SerialInput
    closables: list[Callable[[], None]]
    vcpus: list[VcpuThread]
    devices: list[VirtioDevice]  # that the machine began with
    serial: Serial | None = None
    power: AcpiPm | None = None
    companion: Companion | None = None  # the kernel half, where it is loaded
    pci: PciBus | None = None
    hotplug: Hotplug | None = None  # where devices or vCPUs may come and go
    ram: Ram | None = None  # where memory is more than RAM from start to end

    def add_ioeventfd(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        self.vm.ioeventfd(address, length, fd, datamatch=datamatch)

    def remove_ioeventfd(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        self.vm.ioeventfd(address, length, fd, datamatch=datamatch, deassign=True)

    def close(self) -> None:
        """Release everything. The threads must have ended."""
        while self.closables:
            self.closables.pop()()


def build(
    config: Config,
    output: Callable[[bytes], object],
    devices: tuple[VirtioDevice, ...],
    post: Post,
    say: Say = lambda _line: None,
    new: NewVm | None = None,
) -> Parts:
    """Create the VM and its devices, and load the kernel. Nothing runs yet; on an error nothing is left behind.

    `output` gets what the serial port sends; `devices` are virtio devices beside those that `config` asks for;
    `say` is told what the user must know of the back ends. `new` is a VM that the caller began, ours from now on.
    """
    closables: list[Callable[[], None]] = [new.close] if new else []
    try:
        install_kick_handler()
        check_memory(max(config.memory, config.max_memory))
        return _build(config, output, devices, post, say, new, closables)
    except BaseException:
        for close in reversed(closables):
            close()
        raise


def _build(
    config: Config,
    output: Callable[[bytes], object],
    devices: tuple[VirtioDevice, ...],
    post: Post,
    say: Say,
    new: NewVm | None,
    closables: list[Callable[[], None]],
) -> Parts:
    # First, so that back ends start while we work, and are forked while there is one thread.
    every = _own_devices(config, devices, say, closables)
    ram = _ram(config, closables) if config.balloon or config.max_memory or config.pmems else None
    every += ram.devices if ram else ()
    if new is None:
        new = NewVm()
        closables.append(new.close)
    check_host(config, new.kvm)
    shared = config.hotplug or any(device.shares_memory for device in every)
    pluggable = ram.pluggable if ram else None
    ranges = layout.ram_layout(config.memory)
    memory = GuestMemory(ranges, shared=shared, pluggable=pluggable, hugepages=config.hugepages)
    closables.append(memory.close)

    from unikvm.machine.platform import Ending, add_platform, add_virtio

    entry, board = _load(config, memory, closables)
    vm = new.vm
    io = IoThread(post)
    closables.append(io.loop.close)
    if ram:
        ram.attach(memory, vm, io.schedule)
    parts = Parts(
        config=config,
        post=post,
        kvm=new.kvm,
        vm=vm,
        memory=memory,
        io=io,
        irq=IrqController(vm),
        pio=Bus("pio"),
        mmio=Bus("mmio"),
        panics=PanicWatch(),
        serial_input=SerialInput(io.loop),
        closables=closables,
        vcpus=[],
        devices=every,
        ram=ram,
    )
    if config.kernel_half and os.path.exists("/dev/unikvm"):
        import unikvm.sys.companion as companion

        parts.companion = companion.attach(vm.fd, allow_mismatch=config.allow_mismatch)
        if parts.companion is not None:
            closables.append(parts.companion.close)
    ending = Ending(parts)
    add_platform(parts, output, ending)
    processors = Processors(parts)
    if board is not None:
        board.plug(parts, ending.reset("port 0x92"), say)
    add_virtio(parts, every, ending, board)
    if config.hotplug or config.all_cpus > config.cpus:
        from unikvm.machine.hotplug import Hotplug

        parts.hotplug = Hotplug(parts, processors, parts.pci)
    processors.boot(entry)
    new.place(memory)
    return parts


def _load(config: Config, memory: GuestMemory, closables: list[Callable[[], None]]) -> tuple[Entry, Board | None]:
    """Where the guest starts, with its kernel or its firmware in place."""
    if config.firmware is not None:
        from unikvm.machine.firmware import Board

        board = Board(config.firmware, memory, closables)
        return board.entry, board
    from unikvm.boot import loader

    return loader.load(config.kernel, memory, cmdline=config.cmdline, initrd=config.initrd, rsdp=layout.ACPI), None


def _own_devices(
    config: Config, devices: tuple[VirtioDevice, ...], say: Say, closables: list[Callable[[], None]]
) -> list[VirtioDevice]:
    closables += [device.discard for device in devices]
    every: list[VirtioDevice] = []
    for disk in config.disks:
        every.append(make_disk(disk, say))
        closables.append(every[-1].discard)
    if config.net is not None:
        every.append(make_net(config.net, say))
        closables.append(every[-1].discard)
    return [*every, *devices]


def _ram(config: Config, closables: list[Callable[[], None]]) -> Ram:
    from unikvm.machine import ram

    made = ram.prepare(config)
    closables += [device.discard for device in made.devices]
    return made


def check_memory(size: int) -> None:
    """More than the host has would be killed later, in the middle of the guest's work."""
    with open("/proc/meminfo", encoding="utf-8") as meminfo:
        total = int(meminfo.readline().split()[1]) << 10
    if size > total:
        raise CannotRun(
            f"{format_size(size)} of guest memory is more than this host's {total >> 20}M", hint="give less with --mem"
        )


def make_disk(disk: Disk, say: Say) -> VirtioDevice:
    """The device for `disk`, its image open or its back end started."""
    if disk.kind == "raw":
        from unikvm.virtio.blk import Blk

        return Blk(
            disk.path,
            readonly=disk.readonly,
            serial=disk.serial,
            queues=disk.queues,
            direct=disk.direct,
            writethrough=disk.writethrough,
            say=say,
        )
    from unikvm.vhost import storage
    from unikvm.virtio.vhostblk import VhostBlk

    backend = storage.serve(
        disk.path,
        kind=disk.kind,
        readonly=disk.readonly,
        writethrough=disk.writethrough,
        queues=disk.queues,
        direct=disk.direct,
    )
    return VhostBlk(backend, path=disk.path, readonly=disk.readonly, queues=disk.queues, grow=backend.grow, say=say)


def make_net(net: Net, say: Say) -> VirtioDevice:
    """The device for `net`, its back end started."""
    if net.kind == "tap":
        return _tap(net, say)
    from unikvm.virtio.net import Net as Interface

    if net.kind == "hub":
        from unikvm.virtio import hub

        place = hub.Hub(hub.directory_of(net.name))
        return Interface(place, lambda: place, mtu=hub.MTU, mac=_local_mac(), say=say)
    from unikvm.sys.process import find_program
    from unikvm.vhost import forward, passt

    if not find_program(passt.PROGRAM):
        from unikvm.vhost import slirp
        from unikvm.virtio.packets import PacketLine

        slower = slirp.serve(net.forwards)
        if slower is not None:
            say("no passt here: the network goes by slirp4netns")
            return Interface(slower, lambda: PacketLine(slower.open()), mtu=forward.MTU, say=say)
    from unikvm.virtio.frames import FrameStream

    backend = passt.serve(net.forwards)
    return Interface(backend, lambda: FrameStream(backend.open()), mtu=forward.MTU, say=say)


def _local_mac() -> bytes:
    """An address on a network with others: locally administered, and not of a group."""
    return b"\x02" + os.urandom(5)


def _tap(net: Net, say: Say) -> VirtioDevice:
    from unikvm.sys.tap import Tap
    from unikvm.sys.vhost import VhostNet as Kernel
    from unikvm.virtio.vhostnet import VhostNet

    vhosts: list[Kernel] = []
    try:
        for _ in range(net.queues):
            vhosts.append(Kernel())
        tap = Tap(net.name, net.queues)
    except BaseException:
        for vhost in vhosts:
            vhost.close()
        raise
    device = VhostNet(tap, vhosts, mac=_local_mac())
    try:
        if tap.made:
            say(f"made the interface {tap.name}{f' with {net.router}' if net.router else ''}")
            if net.router:
                tap.configure(net.router, int(net.address.rpartition("/")[2]))
    except BaseException:
        device.discard()
        raise
    return device
