# SPDX-License-Identifier: GPL-2.0-only
"""What a machine is made of, as the user asked for it. Frozen: a running machine never reads a changed config."""

from __future__ import annotations

from unikvm.arch.x86_64.topology import Topology
from unikvm.errors import CannotRun
from unikvm.record import Record
from unikvm.sys.mapping import HUGE_PAGE
from unikvm.units import MIB, format_size

MAX_CPUS = 255
MIN_MEMORY = MIB
MAX_QUEUES = 16  # of a disk
MAX_NET_QUEUES = 8  # pairs of a tap's
MAX_SERIAL = 20  # VIRTIO_BLK_ID_BYTES
CONSOLES = ("virtio", "serial", "none")
TRANSPORTS = ("pci", "mmio")


# By the end of a file's name, and never by its content: a guest decides what a raw image begins with, and an image
# format can name other files of the machine.
_FORMATS = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx", "vhd": "vpc"}
KINDS = ("raw", *_FORMATS.values())


def format_of(path: str) -> str:
    """The image format that a file's name says: one of QEMU's, or `raw`."""
    return _FORMATS.get(path.rpartition(".")[2].lower(), "raw")


class Disk(Record):
    """A disk image. `kind`: raw, or a format that qemu-storage-daemon knows, which has no serial numbers. `queues`: of
    the guest's device. `direct`: past the host's page cache. `writethrough`: written blocks are in the image before the
    guest has the answer.
    """

    path: str
    readonly: bool = False
    serial: str = ""
    kind: str = "raw"
    writethrough: bool = False
    queues: int = 1
    direct: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CannotRun(f"no image format {self.kind!r}", hint=f"one of {', '.join(KINDS)}")
        if self.serial and self.kind != "raw":
            raise CannotRun(f"disk {self.path}: only a raw image can have a serial number")
        if len(self.serial) > MAX_SERIAL or not self.serial.isascii():
            raise CannotRun(f"disk {self.path}: no serial number {self.serial!r}", hint="at most 20 ASCII characters")
        if not 1 <= self.queues <= MAX_QUEUES:
            raise CannotRun(f"disk {self.path}: {self.queues} queues are not possible", hint=f"1 to {MAX_QUEUES}")


class Net(Record):
    """A network interface. `kind`: user (passt, without privileges), tap or hub. `forwards`: ports of the host that
    lead to the guest, `HOST:GUEST[/udp]` each. `name`: of the tap or the hub. `address`: of the guest, ADDRESS/BITS;
    empty: by DHCP, on a hub none. `router`: what it sends to the world through, and the address of a tap that is made.
    `queues`: pairs of them, for receiving and sending, of a tap.
    """

    kind: str
    forwards: tuple[str, ...] = ()
    name: str = ""
    address: str = ""
    router: str = ""
    queues: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.queues <= MAX_NET_QUEUES:
            raise CannotRun(f"--net: {self.queues} queues are not possible", hint=f"1 to {MAX_NET_QUEUES}")


PMEM_MODES = ("rw", "ro", "cow")


class Pmem(Record):
    """An image as memory of the guest (/dev/pmem0). `mode`: rw, ro, or cow: what is written is forgotten."""

    path: str
    mode: str = "rw"

    def __post_init__(self) -> None:
        if self.mode not in PMEM_MODES:
            raise CannotRun(
                f"{self.path}: no way {self.mode!r} to use an image", hint=f"one of {', '.join(PMEM_MODES)}"
            )


class Firmware(Record):
    """PC firmware, which finds what to boot on the disks. `code`: its image. `vars`: the image of a UEFI firmware's
    variables: flash, which is written back to the file, with `keep`, else ROM. `debug`: what it tells its developers is
    passed on to the user.
    """

    code: str
    vars: str = ""
    keep: bool = False
    debug: bool = False


class Config(Record):
    """One machine. `memory` in bytes; `cmdline` is what the guest kernel gets, complete.

    It has a `kernel`, or `firmware`. `max_memory`: up to how much can be plugged in while it runs, where that is more
    than `memory`. `balloon`: whether it can be taken away, down to almost nothing. `hugepages`: memory in huge pages of
    the host, reserved at the start.
    """

    kernel: str = ""
    initrd: str | None = None
    cmdline: str = ""
    memory: int = 256 * MIB
    max_memory: int = 0
    balloon: bool = False
    hugepages: bool = False
    pmems: tuple[Pmem, ...] = ()
    cpus: int = 1
    topology: Topology | None = None  # with more CPUs than `cpus`: the others may come later; None: as many cores
    cpu_model: str = "host"
    pin: tuple[int, ...] = ()  # CPUs of the host for the vCPUs, in turn
    hotplug: bool = False  # whether virtio devices may come and go
    disks: tuple[Disk, ...] = ()
    net: Net | None = None
    console: str = "virtio"
    transport: str = "pci"
    name: str = "unikvm"
    firmware: Firmware | None = None
    testdev: bool = False  # QEMU's pc-testdev, for kvm-unit-tests
    kernel_half: bool = True  # attach to the kernel half where it is loaded
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.firmware is not None and (self.kernel or self.transport != "pci"):
            what = "a kernel" if self.kernel else f"--transport {self.transport}"
            raise CannotRun(f"firmware does not go with {what}", hint="it boots a disk on the PCI bus: leave that out")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise CannotRun(f"{self.cpus} CPUs are not possible", hint=f"1 to {MAX_CPUS}")
        if not self.cpus <= self.all_cpus <= MAX_CPUS:
            raise CannotRun(f"{self.cpus} of {self.all_cpus} CPUs are not possible", hint=f"1 to {MAX_CPUS}")
        if self.hotplug and self.transport != "pci":
            raise CannotRun("devices can only come and go on PCI", hint="--transport pci")
        if self.memory < MIN_MEMORY:
            raise CannotRun(f"{format_size(self.memory)} of memory is too small", hint="at least 1M")
        if self.memory % 4096:
            raise CannotRun(f"{self.memory} bytes of memory is not a multiple of 4096", hint="write it as 256M")
        if self.max_memory and (self.max_memory <= self.memory or (self.max_memory - self.memory) % HUGE_PAGE):
            raise CannotRun(
                f"memory of {format_size(self.memory)} cannot grow to {format_size(self.max_memory)}",
                hint="to more, by a multiple of 2M",
            )
        if self.balloon and self.hugepages:
            raise CannotRun(
                "a balloon in huge pages would give nothing back: they are reserved whole",
                hint="leave out one of balloon and hugepages; with max= memory comes and goes in huge pages",
            )
        if self.console not in CONSOLES:
            raise CannotRun(f"no console {self.console!r}", hint=f"one of {', '.join(CONSOLES)}")
        if self.transport not in TRANSPORTS:
            raise CannotRun(f"no transport {self.transport!r}", hint=f"one of {', '.join(TRANSPORTS)}")

    @property
    def all_topology(self) -> Topology:
        """The places of all CPUs that there may be."""
        return self.topology or Topology(cores=self.cpus)

    @property
    def all_cpus(self) -> int:
        return self.all_topology.cpus
