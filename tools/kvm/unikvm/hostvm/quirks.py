# SPDX-License-Identifier: GPL-2.0-only
"""What a host VM needs to be told because of the QEMU that it runs on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.hostvm.host import HostVm

_FEW_CPUS = 8  # more than these are brought online late
_FEATURE_MTRR = 12  # Linux's number; it takes names only since 5.19
_MIN_TIMER_PERIOD = "/sys/module/kvm/parameters/min_timer_period_us"
_ONE_SECOND = b"1000000"
_ZERO_PAGE = "/sys/kernel/mm/transparent_hugepage/use_zero_page"


def before_firmware(host: HostVm, *, uefi: bool) -> None:
    """What an emulated host needs before PC firmware runs in it."""
    if host.accel.kind == "kvm":
        return
    # Boot loaders read memory before they write it: a huge page of zeros is then split, and each 4 KiB are an exit.
    host.exec(["tee", _ZERO_PAGE], stdin=b"0")
    if uefi:
        _spare_interrupts(host)


def _spare_interrupts(host: HostVm) -> None:
    """Let UEFI's timer tick once a second instead of a hundred times.

    UEFI's interrupt handler writes CR8 at its end, with interrupts off. If the next one is waiting by then, QEMU 7.2's
    emulation of SVM aborts (target/i386: helper_write_crN calls cpu_interrupt without the big lock). KVM's floor for
    periodic local APIC timers makes that rare; Linux guests do not use that mode. Firmware measures time by other
    means, but for what it does on ticks: it looks for keys once a second.
    """
    host.exec(["tee", _MIN_TIMER_PERIOD], stdin=_ONE_SECOND)


def before_many_cpus(host: HostVm, cpus: int, cmdline: str) -> str:
    """The command line of a Linux guest with our init and `cpus` vCPUs, for which `cmdline` was meant.

    Until a kernel has chosen its clock source, each of its CPUs takes 250 timer interrupts a second, idle or not. Each
    is several exits, and after an exit the emulator has forgotten every translation of an address: with 32 CPUs hardly
    anything but interrupts goes on. So the kernel starts one, and init the others, when idle ones do not tick any more.

    Each that comes so late would have all others set their MTRRs again, in step: they spin until the last one has had
    its turn on the host's few CPUs. So the kernel does not see that there are MTRRs (and does without PAT, then).
    """
    if host.accel.kind == "kvm" or cpus <= _FEW_CPUS or "maxcpus=" in cmdline:
        return cmdline
    return f"{cmdline} maxcpus=1 unikvm.cpus clearcpuid={_FEATURE_MTRR}"
