# SPDX-License-Identifier: GPL-2.0-only
"""`make bench`: unikvm beside Debian's QEMU, in the same run, as ratios; figures also in build/bench.json.

usage: run.py [PART...]   (default: all; `--help` names them)

Wall clock where both are on this machine; instruction counts (a host VM under icount, where a nanosecond is an
instruction) where wall clock would be noise.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE / "tests"), str(TREE / "tools/kvm")]

from bench import speed, starts  # noqa: E402
from bench.hosts import QEMU_KVM, Figures, Guest, built, host_config, in_host, load_kernel_half, python_in, say  # noqa: E402
from unikvm.hostvm.host import HostVm, with_host  # noqa: E402
from unikvm.images.artifacts import LAUNCHER  # noqa: E402

RUNS = 5
STARTS = 25
TICK = 0.004  # seconds, of a kernel with CONFIG_HZ=250


def seconds(command: list[str], status: int) -> float:
    """Wall clock of the whole process, begun anywhere between two ticks of the kernel's clock.

    KVM waits for some of these ticks: one run right after the other would always wait equally long.
    """
    time.sleep(random.uniform(0, TICK))
    before = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    after = time.perf_counter()
    if done.returncode != status:
        raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
    return after - before


def bench_payload() -> Figures:
    """1. A payload, the whole process, on this machine's /dev/kvm: medians of starts in turn."""
    elf = str(built("payloads/hello.elf"))
    exit_device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    qemu = [*QEMU_KVM, "-M", "microvm", "-m", "32", "-serial", "null", *exit_device, "-kernel", elf]
    times: dict[str, list[float]] = {"unikvm": [], "qemu": []}
    for _ in range(STARTS + 1):
        times["unikvm"].append(seconds([LAUNCHER, "run", "-m", "32M", elf], 0))
        times["qemu"].append(seconds(qemu, 1))  # isa-debug-exit gives (value << 1) | 1
    ours, theirs = (statistics.median(found[1:]) for found in times.values())  # the first ones fill the page cache
    return {"unikvm_s": ours, "qemu_s": theirs, "ratio": ours / theirs}


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
    storm = str(built("payloads/storm.elf"))

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
    "block": speed.bench_block,
    "console": speed.bench_console,
    "network": speed.bench_network,
    "files": speed.bench_files,
    "root": starts.bench_root,
    "many": starts.bench_many,
}


def main() -> int:
    results = {}
    parts = sys.argv[1:] or list(BENCHES)
    if unknown := [name for name in parts if name not in BENCHES]:
        print(*(f"{name:<9}{bench.__doc__}" for name, bench in BENCHES.items()), sep="\n")
        return 0 if unknown == ["--help"] else 125
    for name in parts:
        bench = BENCHES[name]
        say((bench.__doc__ or "").strip())
        began = time.monotonic()
        results[name] = bench()
        say(f"{time.monotonic() - began:.0f} s")
        for key, value in results[name].items():
            print(f"{name:<9}{key:<48}{value:10.3f}", flush=True)
    path = TREE / "build/bench.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
