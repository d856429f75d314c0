# SPDX-License-Identifier: GPL-2.0-only
"""What a host VM is made of. Frozen: a snapshot is keyed by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unikvm.errors import CannotRun
from unikvm.units import GIB, MIB

if TYPE_CHECKING:
    from unikvm.images.kernel import Kernel

MIN_MEMORY = 384 * MIB
MAX_CPUS = 8


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host VM.

    `init` is the built tools/kvm/guest binary; `shares` are directories of the machine that are mounted read-write at
    the same path; `modules` are loaded before the host is ready, besides KVM and what the root needs; `append` goes to
    the end of the host kernel's command line. `icount`: one vCPU whose nanoseconds are instructions
    (Documentation/host-vm.md). `nested_paging`: KVM there uses the processor's (npt, ept); else it shadows the guests'
    page tables. `accel` is auto, kvm or tcg. `patience` scales every deadline of the watchdog, for slow or crowded
    machines.
    """

    kernel: Kernel
    init: str
    memory: int = 2 * GIB  # bytes; taken as it is touched
    cpus: int = 1
    shares: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    append: str = ""
    icount: bool = False
    nested_paging: bool = True
    snapshot: bool = True
    accel: str = "auto"
    qemu: str = "qemu-system-x86_64"
    patience: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise CannotRun(f"a host VM with {self.cpus} CPUs is not possible", hint=f"1 to {MAX_CPUS}")
        if self.icount and self.cpus != 1:
            raise CannotRun("icount has one CPU", hint="leave out the number of host CPUs")
        if self.memory < MIN_MEMORY or self.memory % MIB:
            raise CannotRun(
                f"{self.memory} bytes of host memory is not possible",
                hint=f"whole MiB, {MIN_MEMORY // MIB} at least",
            )
        for share in self.shares:
            if not share.startswith("/"):
                raise CannotRun(f"the share {share!r} is not an absolute path")
