# SPDX-License-Identifier: GPL-2.0-only
"""CPUs as they were asked for, and CPUs and devices that come to running Linux guests, and go."""

from __future__ import annotations

import json
from pathlib import Path

from stack.run.hosted import RUN, run, sh
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.guest import guest_initramfs
from unikvm.images.kernel import Kernel
from unikvm.images.vmlinux import vmlinux

SECONDS = 240.0
ROUNDS = 20
MANY = 16


def image(share: Path, name: str) -> Path:
    path = share / name
    path.write_bytes(b"hello".ljust(1 << 20, b"\0"))
    return path


def topology_of(text: str) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def test_the_guest_sees_sockets_cores_and_threads(host: HostVm) -> None:
    """Where lscpu looks."""
    script = (
        "cd /sys/devices/system/cpu; for i in 0 1 2 3; do "
        "echo $i $(cat cpu$i/topology/physical_package_id cpu$i/topology/core_id); done; "
        "cat cpu2/topology/thread_siblings_list cpu2/topology/core_siblings_list cpu0/cache/index*/shared_cpu_list"
    )
    done = run(host, "-c", "4,sockets=2,threads=2", "--", "sh", "-c", script)
    assert done.status == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert topology_of("\n".join(lines[:4])) == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 1, 0]]
    assert lines[4:6] == ["2-3", "2-3"]
    # L1 data, L1 instruction, L2. Of the third level Linux believes of this CPU that eight IDs share one.
    assert lines[6:9] == ["0-1"] * 3


def test_a_guest_with_many_cpus(host: HostVm) -> None:
    """As many as a host VM with one CPU boots in a minute; all 255 are payloads/test_boot.py's."""
    options = ("--timeout", "200", "-c", f"{MANY},sockets=2", "-m", "512M")
    done = host.exec([*RUN, *options, "--", "nproc"], timeout=SECONDS)
    assert (done.status, done.stdout.decode()) == (0, f"{MANY}\n"), done.stderr.decode()


def test_a_model_hides_what_is_beyond_it(host: HostVm) -> None:
    done = run(host, "-c", "1,model=x86-64-v2", "--", "grep", "-m1", "flags", "/proc/cpuinfo")
    flags = done.stdout.decode().split()
    assert {"sse4_2", "popcnt", "cx16", "nx"} <= set(flags)
    assert not {"avx", "avx2", "bmi1", "fma", "movbe", "aes"} & set(flags)


def test_cpus_and_disks_come_and_go(host: HostVm, kernel: Kernel, share: Path) -> None:
    """Through the library: CPUs up and down, disks in the lowest free slots, no descriptor lost in 20 rounds."""
    first = image(share, "disk")
    image(share, "disk.2")
    tree = Path(LAUNCHER).parents[1]
    script = Path(__file__).with_name("plugging.py")
    images = [vmlinux(kernel.image), guest_initramfs(kernel, init=init_binary())]
    argv = [str(tree / "build/venv/bin/python3"), str(script), *images, str(first), str(ROUNDS)]
    done = host.exec(argv, env={"PYTHONPATH": str(tree / "tools/kvm")}, timeout=SECONDS)
    assert done.shell_status == 0, done.stderr.decode()


COMMANDS = """\
unikvm() { %s "$@"; }
try() { tries=0; until unikvm "$@" 2>said; do tries=$((tries + 1)); [ $tries -lt 60 ] || exit 9; sleep 0.3; done; }
unikvm run --host local --no-kernel-half -n lab -c 1,max=2 -- sleep 200 & guest=$!
try set lab cpus=2
where=$(unikvm attach lab --disk %s,ro)
echo $where
unikvm stat lab --json
try detach lab $where
unikvm stat lab | grep -c $where
unikvm detach lab 00:01.0 2>&1
unikvm attach lab --disk /no/such/image 2>&1
unikvm stop lab
wait $guest
"""


def test_by_the_commands(host: HostVm, share: Path) -> None:
    """What a user types: set, attach, stat, detach."""
    done = sh(host, COMMANDS % (LAUNCHER, image(share, "typed")))
    first, *rest = done.stdout.decode().splitlines()
    assert first == "00:03.0", (done.stdout, done.stderr)  # after the console and the random numbers
    stat = json.loads("".join(rest[: rest.index("}") + 1]))
    disk = {"address": "00:03.0", "device": "blk", "image": str(share / "typed"), "size": "1M"}
    assert stat["devices"][-1] == disk
    assert stat["cpus"] == 2
    assert [cpu["state"] for cpu in stat["vcpus"]] == ["on", "on"]
    gone, console, nothing = rest[rest.index("}") + 1 :]
    assert gone == "0"
    assert "console, which stays" in console
    assert "no such image" in nothing
