# SPDX-License-Identifier: GPL-2.0-only
"""QEMU for the host VM: how it is accelerated, its command line, its ends of the sockets."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unikvm.errors import CannotRun
from unikvm.sys.kvm import tsc_khz
from unikvm.sys.process import Process, spawn
from unikvm.sys.qmp import Qmp
from unikvm.wire import PORT_RELAY, PORTS

if TYPE_CHECKING:
    from unikvm.hostvm.config import HostConfig

# What QEMU's TCG does not emulate of an EPYC: left in, each one is a warning at every start.
_TCG_LACKS = "-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec"
# "Enhanced" rep movsb and stosb are a loop of bytes under TCG: without the flag kernels clear and copy eight at a time.
_TCG_CPU = f"EPYC,+svm,+npt,-erms,{_TCG_LACKS}"
_TCG_TRANSLATIONS_MIB = 1024

# reboot=t and panic=1 end QEMU (-no-reboot) one second after a panic, when the console has said all.
_CMDLINE = (
    "console=ttyS0 quiet unikvm.role=host unikvm.hostname=host panic=1 oops=panic reboot=t mitigations=off nokaslr"
)
# The emulated clock is the truth: no calibration loops, no watchdog that marks the TSC unstable under load.
_CMDLINE_TCG = "tsc=reliable clocksource=tsc no_timer_check"


@dataclass(frozen=True, slots=True)
class Accel:
    """How the host VM's processor is had: `kind` is kvm, tcg or icount, `vendor` amd or intel, `why` for the user."""

    kind: str
    vendor: str
    why: str


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def choose_accel(config: HostConfig) -> Accel:
    """KVM where /dev/kvm has hardware behind it that nests, else TCG. CannotRun where KVM was demanded in vain."""
    if config.icount:
        return Accel("icount", "amd", "counting instructions")
    if config.accel == "tcg":
        return Accel("tcg", "amd", "asked for")
    # Without svm or vmx a /dev/kvm is emulated itself, and slower than TCG.
    flags = _read("/proc/cpuinfo")
    vendor = "intel" if " vmx" in flags else "amd"
    if " svm" not in flags and " vmx" not in flags:
        missing = "no hardware virtualisation (neither svm nor vmx)"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        missing = "no permission on /dev/kvm" if os.path.exists("/dev/kvm") else "no /dev/kvm"
    elif _read(f"/sys/module/kvm_{vendor}/parameters/nested").strip() not in ("1", "Y"):
        missing = f"kvm_{vendor} does not nest (parameter nested)"
    else:
        return Accel("kvm", vendor, "hardware virtualisation with nesting")
    if config.accel == "kvm":
        raise CannotRun(f"the host VM cannot use KVM: {missing}", hint="use the emulator: it is slow but true")
    return Accel("tcg", "amd", missing)


def kernel_cmdline(config: HostConfig, accel: Accel) -> str:
    """The host kernel's command line."""
    parts = [_CMDLINE]
    if accel.kind != "kvm":
        parts.append(_CMDLINE_TCG)
    # TCG's TSC is the machine's. A loaded machine stops the kernel in the middle of measuring it: time then ran 8 times
    # too fast, and what waits for seconds gave up. Under icount the kernel measures it exactly.
    if accel.kind == "tcg" and (khz := tsc_khz()):
        parts.append(f"tsc_early_khz={khz}")
    if config.append:
        parts.append(config.append)
    return " ".join(parts)


def _accel_args(accel: Accel) -> list[str]:
    if accel.kind == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if accel.kind == "icount":
        return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on", "-cpu", _TCG_CPU]
    return ["-accel", f"tcg,tb-size={_TCG_TRANSLATIONS_MIB}", "-cpu", _TCG_CPU]


def machine_args(config: HostConfig, accel: Accel) -> list[str]:
    """The part of QEMU's command line that a snapshot depends on: the machine, without kernel and descriptors."""
    args = ["-name", "unikvm-host", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    args += ["-machine", "pc,usb=off,hpet=off,memory-backend=ram", *_accel_args(accel)]
    args += ["-smp", str(config.cpus), "-m", f"{config.memory >> 20}M"]
    args += ["-device", "virtio-serial-pci,id=ports,max_ports=8"]
    for port in (*PORTS, PORT_RELAY):
        args += ["-device", f"virtserialport,bus=ports.0,chardev={port},name={port}"]
    return args


@dataclass(slots=True)
class Qemu:
    """A running QEMU: the front's ends. `ram` is the memfd of its memory, `console` the memfd its console goes to."""

    process: Process
    qmp: Qmp
    ports: dict[str, socket.socket]
    ram: int
    console: int

    def close(self) -> None:
        """End QEMU and release everything. Safe to call in any state."""
        self.process.close()
        self.qmp.close()
        for sock in self.ports.values():
            sock.close()
        os.close(self.ram)
        os.close(self.console)


def start_qemu(
    config: HostConfig, accel: Accel, extra: list[str], *, ram: int, initrd: int | None, incoming: bool
) -> Qemu:
    """Start QEMU on the memory in the memfd `ram`, which it takes over. It boots, or waits (`incoming`) for a state.

    Nothing here has a name in a file system: sockets are pairs, the console and the initramfs are memfds.
    """
    console = os.memfd_create("console", os.MFD_CLOEXEC)
    ours: dict[str, socket.socket] = {}
    theirs: dict[str, socket.socket] = {}
    for name in ("qmp", *PORTS, PORT_RELAY):
        ours[name], theirs[name] = socket.socketpair()
    fds = [ram, console, *(sock.fileno() for sock in theirs.values())]
    args = [config.qemu, *machine_args(config, accel), *extra]
    args += ["-object", f"memory-backend-file,id=ram,size={config.memory >> 20}M,share=on,mem-path=/proc/self/fd/{ram}"]
    args += ["-chardev", f"file,id=console,path=/proc/self/fd/{console}", "-serial", "chardev:console"]
    for name, sock in theirs.items():
        args += ["-chardev", f"socket,id={name},fd={sock.fileno()}"]
    args += ["-mon", "chardev=qmp,mode=control"]
    args += ["-kernel", config.kernel.image, "-append", kernel_cmdline(config, accel)]
    if initrd is not None:
        fds.append(initrd)
        args += ["-initrd", f"/proc/self/fd/{initrd}"]
    if incoming:
        args += ["-incoming", "defer"]
    try:
        process = spawn(args, fds=fds)
    except CannotRun as error:
        for sock in ours.values():
            sock.close()
        os.close(console)
        os.close(ram)
        raise CannotRun(error.message, hint="is QEMU installed? `make setup` installs it") from None
    finally:
        for sock in theirs.values():
            sock.close()
    return Qemu(process, Qmp(ours.pop("qmp")), ours, ram, console)


def new_ram(size: int) -> int:
    """A memfd of `size` bytes for a machine's memory."""
    ram = os.memfd_create("unikvm-host-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(ram, size)
    except (OSError, OverflowError) as error:
        os.close(ram)
        raise CannotRun(f"no {size >> 20} MiB of memory for the host VM: {error}") from error
    return ram
