# SPDX-License-Identifier: GPL-2.0-only
"""Devices at work, unikvm beside QEMU: disk, console, network, shared root.

Each twice in a host VM of its own: under icount for instructions, without for wall clock. QEMU is q35 with virtio-pci
and MSI-X, its quickest way; both have the same kernel, initramfs, backing files and back ends. `kinsn` is everything:
the guest, the host's kernel, the VMM, the back end; `VMM kinsn` the VMM's process without its vCPU.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.hosts import BENCH, Figures, Guest, Stalled, built, host_config, in_host, python_in, say
from unikvm.campaign.git import git
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.hostvm.watchdog import HostError
from unikvm.images.artifacts import LAUNCHER
from unikvm.images.guest import busybox_binary
from unikvm.images.packages import fetched

Load = dict[str, str | int]
Plan = dict[str, Any]
IMAGE = "/run/bench.img"  # in the host VM's memory: what is measured is the way there
IMAGE_MB = 96
ROUNDS_ICOUNT, ROUNDS_SECONDS = 1, 3
ATTEMPTS = 4  # host VMs for one plan
SECONDS = 150.0  # that a host VM has
FORGET = "sync; echo 3 >/proc/sys/vm/drop_caches"
# What there is to search and to look through: Debian's kernel source, this much of it.
SOURCE = "linux-source-6.1"
PARTS = ("kernel", "mm", "virt", "arch/x86/kvm")


def compared(plan: Plan, guest: Guest, *, before: str = "", modules: tuple[str, ...] = ()) -> Figures:
    """Run `plan` (loads.py) both ways. `before`: what the host VM's shell makes first."""
    counted = measured(plan, host_config(guest, icount=True, modules=modules), before)
    timed = measured(plan, host_config(guest, icount=False, modules=modules), before)
    figures: Figures = {}
    for name in plan["loads"]:
        figures |= told(name, "kinsn", {vmm: both[0] for vmm, both in counted.get(name, {}).items()})
        figures |= told(name, "VMM kinsn", {vmm: both[1] for vmm, both in counted.get(name, {}).items()})
        figures |= told(name, "us", {vmm: both[0] for vmm, both in timed.get(name, {}).items()})
    return figures


def measured(plan: Plan, config: HostConfig, before: str) -> dict[str, dict[str, list[float]]]:
    """What loads.py found, by load and VMM. A host VM that stalls is given up; another one does what is left."""
    found: dict[str, dict[str, list[float]]] = {}
    rounds = ROUNDS_ICOUNT if config.icount else ROUNDS_SECONDS
    for _ in range(ATTEMPTS):
        left = {name: load for name, load in plan["loads"].items() if name not in found}
        lines = bytearray()

        def measure(host: HostVm, left: Plan = left, lines: bytearray = lines) -> Figures:
            if before:
                host.exec(["sh", "-e", "-c", before], timeout=120)
            plan_left = json.dumps({**plan, "loads": left, "rounds": rounds})
            python_in(host, "loads.py", plan_left, into=lines.extend, timeout=SECONDS)
            return {}

        try:
            in_host(config, measure)
        except (Stalled, HostError) as error:
            say(f"{error}; going on in another one")
        found |= dict(map(json.loads, lines.decode().splitlines()))
        if len(found) == len(plan["loads"]):
            break
    return found


def told(load: str, unit: str, of: dict[str, float]) -> Figures:
    """Thousands of nanoseconds or instructions by VMM, and ours by QEMU's."""
    figures = {f"{load}: {unit}, {vmm}": value / 1e3 for vmm, value in of.items()}
    if of:
        figures[f"{load}: {unit}, ratio"] = of["unikvm"] / of["qemu"]
    return figures


def reads(mode: str, size: int, depth: int, few: int, many: int) -> Load:
    return {"command": f"load read /dev/vda {mode} {size} {depth} {{n}}", "few": few, "many": many}


def bench_block() -> Figures:
    """6. Disk: direct reads of a raw file in memory, each. About 5 minutes."""
    guest = Guest(tools=[built("bench/load")])
    drive = ["-drive", f"file={IMAGE},format=raw,if=none,id=d,readonly=on", "-device", "virtio-blk-pci,drive=d"]
    plan: Plan = {
        "guests": {
            "unikvm": {"argv": guest.ours("-d", f"{IMAGE},ro")},
            "qemu": {"argv": guest.qemu_pci(*drive)},
        },
        "loads": {
            "4 KiB random, depth 1": reads("rand", 4096, 1, 100, 1100),
            "4 KiB random, depth 32": reads("rand", 4096, 32, 320, 3520),
            "128 KiB in sequence": reads("seq", 128 << 10, 1, 50, 450),
        },
    }
    return compared(plan, guest, before=f"dd if=/dev/urandom of={IMAGE} bs=1M count={IMAGE_MB}")


def bench_console() -> Figures:
    """7. Console: 64 KiB to hvc0, each. About 3 minutes."""
    guest = Guest()
    plan: Plan = {
        "guests": {"unikvm": {"argv": guest.ours()}, "qemu": {"argv": guest.qemu_pci()}},
        "loads": {
            "64 KiB of output": {"command": "dd if=/dev/zero of=/dev/hvc0 bs=64k count={n}", "few": 2, "many": 22},
        },
    }
    return compared(plan, guest)


def bench_network() -> Figures:
    """8. Network: TCP to the host through vhost-net, 1 MB each, and a byte there and back. About 4 minutes."""
    guest = Guest(modules=["virtio_net"], tools=[built("bench/load")])
    busybox = busybox_binary()
    tap = ["-netdev", "tap,id=n,ifname=bench1,script=no,downscript=no,vhost=on"]
    nic = ["-device", "virtio-net-pci,netdev=n,romfile="]

    def inside(number: int) -> list[str]:
        address = f"ip addr add 192.168.{number}.2/24 dev eth0"
        return [address, "ip link set eth0 up", f"peer=192.168.{number}.1"]

    plan: Plan = {
        "servers": [[str(built("bench/load")), "serve", "5001"]],
        "guests": {
            "unikvm": {
                "argv": guest.ours("--net", "tap=bench0,ip=192.168.70.2/24,gw=192.168.70.1"),
                "guest": inside(70),
            },
            "qemu": {
                "argv": guest.qemu_pci(*tap, *nic),
                "host": [
                    [busybox, "ip", "addr", "add", "192.168.71.1/24", "dev", "bench1"],
                    [busybox, "ip", "link", "set", "bench1", "up"],
                ],
                "guest": inside(71),
            },
        },
        "loads": {
            "guest to host": {"command": "load send $peer 5001 {n}000000", "few": 5, "many": 45},
            "host to guest": {"command": "load recv $peer 5001 {n}000000", "few": 5, "many": 45},
            "there and back": {"command": "load ping $peer 5001 {n}", "few": 100, "many": 1100},
        },
    }
    return compared(plan, guest, modules=("tun", "vhost_net"))


def kernel_tree() -> Path:
    """A git work tree with PARTS of Debian's kernel source, made once in build/bench."""
    path = BENCH / SOURCE
    if path.is_dir():
        return path
    BENCH.mkdir(exist_ok=True)
    archive = Path(fetched(SOURCE, say), f"usr/src/{SOURCE}.tar.xz")
    with tempfile.TemporaryDirectory(dir=BENCH) as work:
        parts = [f"{SOURCE}/{part}" for part in PARTS]
        subprocess.run(["tar", "-C", work, "-xf", str(archive), *parts], check=True)
        tree = Path(work, SOURCE)
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", SOURCE]):
            git(str(tree), *arguments)
        tree.rename(path)
    return path


def bench_files() -> Figures:
    """9. Shared root: `git status` and `grep -r` over 830 files of a kernel tree, page cache cold and warm."""
    guest = Guest(modules=["virtiofs", "overlay"])
    # Copied into the host VM's memory: nothing of what is measured goes to the machine. git notes the copies' times.
    before = f"cp -a {kernel_tree()} /bench && git -C /bench update-index -q --refresh"
    share = ["-chardev", "socket,id=fs,fd={fd}", "-device", "vhost-user-fs-pci,chardev=fs,tag=root"]
    mount = [
        "mkdir /lower /upper /merged && mount -t virtiofs root /lower && mount -t tmpfs upper /upper",
        "mkdir /upper/up /upper/work",
        "mount -t overlay root -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work /merged",
        "for place in proc sys dev; do mount --bind /$place /merged/$place; done",
        "exec chroot /merged /bin/sh",
    ]
    plan: Plan = {
        "guests": {
            "unikvm": {"argv": [LAUNCHER, "run", "--host", "local", "-q", "--root", "/", "--", "/bin/sh"]},
            "qemu": {"argv": guest.qemu_pci(*share), "serve": "/", "guest": mount},
        },
        "loads": {
            f"{what}, {state}": {"command": command, **({"prepare": FORGET} if state == "cold" else {})}
            for what, command in (
                ("git status", "git -C /bench status --porcelain"),
                ("grep -r", "grep -rc kvm_vcpu /bench >/dev/null"),
            )
            for state in ("cold", "warm")
        },
    }
    return compared(plan, guest, before=before)
