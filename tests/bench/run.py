# SPDX-License-Identifier: GPL-2.0-only
"""`make bench`: unikvm beside Debian's QEMU, in the same run, as ratios; figures also in build/bench.json.

usage: run.py [payload] [boot] [memory] [exits] [bisect]   (default: all)

Wall clock where both are on this machine; instruction counts (a host VM under icount, where a nanosecond is an
instruction) where wall clock would be noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE / "tests"), str(TREE / "tools/kvm")]

from unikvm.hostvm.config import HostConfig  # noqa: E402
from unikvm.hostvm.host import HostVm, with_host  # noqa: E402
from unikvm.images.artifacts import LAUNCHER, init_binary, kernel_half  # noqa: E402
from unikvm.images.guest import guest_initramfs  # noqa: E402
from unikvm.images.kernel import find_kernel  # noqa: E402
from unikvm.images.vmlinux import vmlinux  # noqa: E402
from unikvm.observe.reasons import module_parameters  # noqa: E402
from unikvm.units import GIB  # noqa: E402

RUNS = 5
QEMU = "qemu-system-x86_64"
MICROVM = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm"]
Figures = dict[str, float]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def payloads() -> Path:
    """The newest folder of built payloads."""
    found = sorted(TREE.glob("build/*/tests/payloads/storm.elf"), key=os.path.getmtime)
    if not found:
        raise SystemExit("bench: no payloads: make build")
    return found[-1].parent


def median_seconds(command: list[str], status: int) -> float:
    """Wall clock of the whole process, median of RUNS after one to warm up."""
    times = []
    for _ in range(RUNS + 1):
        before = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
        times.append(time.perf_counter() - before)
        if done.returncode != status:
            raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
    return statistics.median(times[1:])


def bench_payload() -> Figures:
    """1. A payload, the whole process, on this machine's /dev/kvm."""
    elf = str(payloads() / "hello.elf")
    exit_device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    qemu = [*MICROVM, "-M", "microvm", "-m", "32", "-serial", "null", *exit_device, "-kernel", elf]
    ours = median_seconds([LAUNCHER, "run", "-m", "32M", elf], 0)
    theirs = median_seconds(qemu, 1)  # isa-debug-exit gives (value << 1) | 1
    return {"unikvm_s": ours, "qemu_s": theirs, "ratio": ours / theirs}


class Guest:
    """The kernel and initramfs that both VMMs boot."""

    def __init__(self) -> None:
        kernel = find_kernel(None)
        self.host_kernel = kernel
        self.vmlinux = vmlinux(kernel.image)
        self.initramfs = guest_initramfs(kernel, init=init_binary())
        # What `unikvm run` gives to a kernel and an initramfs of the user's, word for word.
        self.cmdline = "quiet loglevel=3 nokaslr console=ttyS0 console=hvc0 panic=-1"

    def ours(self, *more: str) -> list[str]:
        images = ["-k", self.vmlinux, "-i", self.initramfs, "-m", "256M"]
        return [LAUNCHER, "run", "--host", "local", *images, "-q", *more]

    def qemu(self) -> list[str]:
        machine = ["-M", "microvm,rtc=on", "-cpu", "host", "-m", "256", "-smp", "1", "-no-reboot"]
        console = ["-device", "virtio-serial-device", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c"]
        console += ["-device", "virtio-rng-device", "-serial", "null"]
        images = ["-kernel", self.vmlinux, "-initrd", self.initramfs, "-append", self.cmdline]
        return [*MICROVM, *machine, *console, *images]


def host_config(guest: Guest, *, icount: bool) -> HostConfig:
    return HostConfig(kernel=guest.host_kernel, init=init_binary(), icount=icount, memory=2 * GIB, patience=4.0)


def load_kernel_half(host: HostVm) -> None:
    """As `unikvm run` does it: with the offsets from BTF, without which exits are cheaper and not the users'."""
    kernel = host.config.kernel
    module, parameters = kernel_half(kernel.release), module_parameters(kernel)
    if not module or not parameters:
        raise SystemExit(f"bench: no {'BTF' if module else 'kernel half'} for {kernel.release}")
    host.insmod(module, parameters)


def in_host(config: HostConfig, action: Callable[[HostVm], Figures]) -> Figures:
    def run(host: HostVm) -> Figures:
        load_kernel_half(host)
        return action(host)

    return with_host(config, run, say=say)


def python_in(host: HostVm, script: str, *arguments: str) -> str:
    """Run a bench script of this folder in the host; its output."""
    python = str(TREE / "build/venv/bin/python3")
    argv = [python, str(TREE / "tests/bench" / script), *arguments]
    done = host.exec(argv, env={"PYTHONPATH": f"{TREE}/tools/kvm:{TREE}/tests"}, timeout=900)
    if done.shell_status:
        raise SystemExit(f"bench: {script} in the host VM: {done.stderr.decode()}")
    return done.stdout.decode()


def bench_boot() -> Figures:
    """2. Debian's cloud kernel to the first line of its init, in 10^9 instructions, in one host VM."""
    guest = Guest()

    def measure(host: HostVm) -> Figures:
        # microvm's devices are on virtio-mmio; ours by default on PCI, which the guest has to enumerate.
        order = {"unikvm": guest.ours("--transport", "mmio"), "unikvm_pci": guest.ours(), "qemu": guest.qemu()}
        figures: Figures = json.loads(python_in(host, "boots.py", json.dumps(order), str(RUNS)))
        qemu = figures["qemu_ginsn"]
        return {**figures, "ratio": figures["unikvm_ginsn"] / qemu, "ratio_pci": figures["unikvm_pci_ginsn"] / qemu}

    return in_host(host_config(guest, icount=True), measure)


def bench_memory() -> Figures:
    """3. Resident memory of the VMM beside guest RAM, with the guest at its prompt; in MB."""
    guest = Guest()

    def measure(host: HostVm) -> Figures:
        order = json.dumps({"unikvm": guest.ours(), "qemu": guest.qemu()})
        figures: Figures = json.loads(python_in(host, "resident.py", order))
        return {**figures, "ratio": figures["unikvm_mb"] / figures["qemu_mb"]}

    return in_host(host_config(guest, icount=False), measure)


def bench_exits() -> Figures:
    """4. Instructions per exit: without the kernel half, with it loaded, and attached."""
    config = host_config(Guest(), icount=True)
    storm = str(payloads() / "storm.elf")

    def measure(host: HostVm) -> Figures:
        without: Figures = json.loads(python_in(host, "exits.py", storm, "absent"))
        load_kernel_half(host)
        figures = dict(without)
        for state in ("loaded", "attached"):
            for name, count in json.loads(python_in(host, "exits.py", storm, state)).items():
                figures[f"{name}_{state}"] = count
                figures[f"{name}_{state}_overhead"] = count / without[name] - 1
        return figures

    return with_host(config, measure, say=say)


def bench_bisect() -> Figures:
    """5. Runs and builds of a bisection, beside two bisections over two repositories."""
    from bench import halves

    return halves.figures()


BENCHES = {
    "payload": bench_payload,
    "boot": bench_boot,
    "memory": bench_memory,
    "exits": bench_exits,
    "bisect": bench_bisect,
}


def main() -> int:
    results = {}
    for name in sys.argv[1:] or BENCHES:
        bench = BENCHES[name]
        say((bench.__doc__ or "").strip())
        results[name] = bench()
        for key, value in results[name].items():
            print(f"{name:<9}{key:<48}{value:10.3f}", flush=True)
    path = TREE / "build/bench.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
