# SPDX-License-Identifier: GPL-2.0-only
"""Memory that comes and goes, huge pages, memory above 4 GiB, and images as memory, of guests in one host VM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unikvm.cli.options.memory import BALLOON_MODULES, HOTPLUG_MODULES, PMEM_MODULES
from unikvm.errors import CANNOT_RUN
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import Exit, HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.guest import MODULES, OPTIONAL_MODULES, busybox_binary, guest_initramfs
from unikvm.images.kernel import Kernel
from unikvm.images.vmlinux import vmlinux
from unikvm.units import GIB

Run = Callable[..., Exit]
SECONDS = 120.0
TREE = Path(LAUNCHER).parents[1]
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


def initramfs(kernel: Kernel, *optional: str, modules: tuple[str, ...] = MODULES) -> str:
    every = (*OPTIONAL_MODULES, *optional)
    return guest_initramfs(kernel, init=init_binary(), modules=modules, optional=every)


@pytest.fixture(scope="module")
def host(kernel: Kernel, share: Path) -> Iterator[HostVm]:
    """With more memory than other tests need, and the guests' initramfs with their modules in the cache."""
    for optional in (BALLOON_MODULES, HOTPLUG_MODULES, PMEM_MODULES):
        initramfs(kernel, *optional)
    initramfs(kernel, *PMEM_MODULES, "ext4", modules=(*MODULES, "overlay"))
    config = HostConfig(kernel=kernel, init=init_binary(), shares=(str(share),), memory=8 * GIB)
    with HostVm(config) as running:
        yield running


@pytest.fixture
def run(host: HostVm) -> Run:
    def call(*arguments: str) -> Exit:
        argv = [LAUNCHER, "run", "--host", "local", "--no-kernel-half", "--timeout", "60", *arguments]
        return host.exec(argv, timeout=SECONDS)

    return call


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


@pytest.fixture(scope="module")
def found(host: HostVm, kernel: Kernel) -> dict[str, Any]:
    """What a guest's memory did, told by memory_inside.py."""
    argv = [str(TREE / "build/venv/bin/python3"), str(Path(__file__).with_name("memory_inside.py"))]
    initrd = initramfs(kernel, *BALLOON_MODULES, *HOTPLUG_MODULES)
    environment = {"PYTHONPATH": str(TREE / "tools/kvm")}
    done = host.exec([*argv, vmlinux(kernel.image), initrd], env=environment, timeout=3 * SECONDS)
    assert done.shell_status == 0, done
    measured: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(measured, indent=1))
    return measured


def test_statistics_come_from_the_guest(found: dict[str, Any]) -> None:
    statistics = found["statistics"]
    assert statistics["total"] >> 20 == found["total"]
    assert 0 < statistics["free"] < statistics["total"]


def test_free_pages_are_reported(found: dict[str, Any]) -> None:
    """The guest deletes a file of 90 MiB, and nobody asks for anything."""
    assert found["written"] > found["booted"] + 70
    assert found["reported"] < found["written"] - 70


def test_the_balloon_takes_memory_and_gives_it_back_before_anything_is_killed(found: dict[str, Any]) -> None:
    """96 of 256 MiB are in it when the guest writes 110 MiB, with some 90 left."""
    assert found["free-inflated"] < found["free"] - 90
    assert found["written-size"] == "110"
    assert found["size-after-oom"] > 160
    assert found["killed"] == "0"


def test_a_gigabyte_comes_and_goes(found: dict[str, Any]) -> None:
    assert found["total-added"] - found["total"] == 1024
    assert found["written-added"] - found["inflated"] > 550
    assert found["total-removed"] == found["total"]
    assert found["removed"] < found["written-added"] - 550


def test_memory_above_4_gib_is_written_and_read(run: Run) -> None:
    """Linux takes from its zone Normal first, which begins there."""
    free = "awk '/zone *Normal/ { getline; print $NF }' /proc/zoneinfo"
    data = "for i in 1 2 3 4 5; do cat /bin/busybox; done > /x; cp /x /y; md5sum < /x; md5sum < /y"
    script = f"grep 'System RAM' /proc/iomem; {free}; {data}; {free}"
    done = run("-m", "6G", *sh(script))
    assert done.status == 0, done
    *ranges, before, one, other, after = done.stdout.decode().splitlines()
    assert "100000000-1bfffffff : System RAM" in ranges
    assert int(before) - int(after) > 16_000_000 // 4096
    assert one == other


def test_huge_pages(host: HostVm, run: Run) -> None:
    host.exec(["sh", "-c", f"echo 0 > {HUGE_PAGES}"], timeout=20)
    done = run("-m", "256M,hugepages", "--", "true")
    assert done.status == CANNOT_RUN
    why = "unikvm: 128 huge pages of 2 MiB are needed, and this host has 0 to give"
    assert done.stderr.decode() == f"{why} (set more aside: sysctl vm.nr_hugepages=128)\n"
    host.exec(["sh", "-c", f"echo 128 > {HUGE_PAGES}"], timeout=20)
    done = run(
        "-q", "-m", "256M,hugepages", *sh("dd if=/dev/zero of=/x bs=1M count=100 2>/dev/null; cat /proc/meminfo")
    )
    host.exec(["sh", "-c", f"echo 0 > {HUGE_PAGES}"], timeout=20)
    assert done.status == 0, done
    assert b"MemTotal" in done.stdout


@pytest.fixture(scope="module")
def root(share: Path) -> Path:
    """An image with a root file system."""
    tree = share / "tree"
    busybox = Path(busybox_binary())
    for name in ("bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(busybox.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name in ("cat", "grep", "mkdir", "mount", "sh", "sync", "umount"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/greeting").write_text("hello\n")
    image = share / "root.img"
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    subprocess.run(["mke2fs", "-q", "-b", "4096", "-t", "ext4", "-d", tree, image], check=True)
    return image


def test_an_image_is_the_root(run: Run, root: Path) -> None:
    """It is mounted with dax, so that its files take no memory of the guest; what is written is forgotten."""
    before = root.read_bytes()
    script = "cat /etc/greeting; echo other > /etc/greeting; cat /etc/greeting; grep pmem /proc/self/mountinfo"
    done = run("--root", str(root), *sh(f"{script}; echo 1 > /dev/pmem0; sync"))
    assert done.status == 0, done
    assert done.stdout.decode().splitlines()[:2] == ["hello", "other"]
    assert root.read_bytes() == before


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_an_image_as_memory_keeps_what_is_written(run: Run, root: Path, share: Path, transport: str) -> None:
    image = share / f"{transport}.img"
    image.write_bytes(root.read_bytes())
    script = (
        "mkdir /m; mount -t ext4 -o dax /dev/pmem0 /m; grep -o dax=always /proc/mounts;"
        "cat /m/etc/greeting; echo written > /m/etc/greeting; sync; umount /m"
    )
    done = run("--transport", transport, "--pmem", str(image), *sh(script))
    assert (done.status, done.stdout.decode().splitlines()) == (0, ["dax=always", "hello"]), done
    shown = subprocess.run(["debugfs", "-R", "cat /etc/greeting", image], capture_output=True, check=True)
    assert shown.stdout == b"written\n"


@pytest.mark.parametrize("mode", ["ro", "cow"])
def test_an_image_that_is_not_written_to(run: Run, root: Path, mode: str) -> None:
    before = root.read_bytes()
    script = "mkdir /m; mount -t ext4 -o ro /dev/pmem0 /m; cat /m/etc/greeting; umount /m; echo 1 > /dev/pmem0; sync"
    done = run("--pmem", f"{root},{mode}", *sh(f"{script}; head -c 1 /dev/pmem0 | grep -c 1"))
    assert done.stdout.decode().splitlines() == ["hello", "1" if mode == "cow" else "0"], done
    assert root.read_bytes() == before
