# SPDX-License-Identifier: GPL-2.0-only
"""What a machine is made of, as the user asked for it. Frozen: a running machine never reads a changed config."""

from __future__ import annotations

from unikvm.errors import CannotRun
from unikvm.record import Record
from unikvm.units import MIB, format_size

MAX_CPUS = 8
MIN_MEMORY = MIB
CONSOLES = ("virtio", "serial", "none")
TRANSPORTS = ("pci", "mmio")


class Disk(Record):
    """A raw disk image."""

    path: str
    readonly: bool = False
    serial: str = ""


class Config(Record):
    """One machine. `memory` in bytes; `cmdline` is what the guest kernel gets, complete."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""
    memory: int = 256 * MIB
    cpus: int = 1
    disks: tuple[Disk, ...] = ()
    console: str = "virtio"
    transport: str = "pci"
    name: str = "unikvm"
    testdev: bool = False  # QEMU's pc-testdev, for kvm-unit-tests
    kernel_half: bool = True  # attach to the kernel half where it is loaded
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise CannotRun(f"{self.cpus} CPUs are not possible", hint=f"1 to {MAX_CPUS}")
        if self.memory < MIN_MEMORY:
            raise CannotRun(f"{format_size(self.memory)} of memory is too small", hint="at least 1M")
        if self.memory % 4096:
            raise CannotRun(f"{self.memory} bytes of memory is not a multiple of 4096", hint="write it as 256M")
        if self.console not in CONSOLES:
            raise CannotRun(f"no console {self.console!r}", hint=f"one of {', '.join(CONSOLES)}")
        if self.transport not in TRANSPORTS:
            raise CannotRun(f"no transport {self.transport!r}", hint=f"one of {', '.join(TRANSPORTS)}")
