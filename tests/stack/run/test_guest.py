# SPDX-License-Identifier: GPL-2.0-only
"""Linux guests that the user half runs in a host VM with the kernel half loaded: one host for all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unikvm.errors import CANNOT_RUN, HANG, PANIC, TIMEOUT
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import Exit, HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary, kernel_half
from unikvm.images.guest import guest_initramfs
from unikvm.images.kernel import Kernel
from unikvm.images.vmlinux import vmlinux
from unikvm.observe.reasons import module_parameters
from unikvm.units import GIB

Run = Callable[..., Exit]
SECONDS = 120.0


@pytest.fixture(scope="module")
def host(kernel: Kernel, share: Path) -> Iterator[HostVm]:
    config = HostConfig(kernel=kernel, init=init_binary(), shares=(str(share),), memory=8 * GIB)
    with HostVm(config) as running:
        module = kernel_half(kernel.release)
        assert module, "the kernel half is not built: make build"
        running.insmod(module, module_parameters(kernel))
        yield running


@pytest.fixture
def run(host: HostVm) -> Run:
    """`unikvm run --host local …` in the host VM."""

    def call(*arguments: str, stdin: bytes = b"") -> Exit:
        argv = [LAUNCHER, "run", "--host", "local", "--timeout", "60", *arguments]
        return host.exec(argv, stdin=stdin, timeout=SECONDS)

    return call


def sh(script: str, *options: str) -> tuple[str, ...]:
    return (*options, "--", "sh", "-c", script)


def test_a_command_and_its_three_streams(run: Run) -> None:
    done = run(*sh("cat; echo problems >&2; exit 3"), stdin=b"typed\n")
    assert (done.status, done.stdout) == (3, b"typed\n")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "problems"
    assert lines[-1].startswith("unikvm: exit 3: the command ended with status 3")


def test_a_megabyte_is_exact_both_ways(run: Run) -> None:
    data = os.urandom(1 << 20)
    done = run("-q", "--", "cat", stdin=data)
    assert done.status == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == b""


def test_statuses_beyond_what_fits(run: Run, share: Path) -> None:
    result = share / "result.json"
    assert run("--result", str(result), "--", "sh", "-c", "exit 200").status == 119
    written = json.loads(result.read_text())
    assert (written["status"], written["true_status"], written["outcome"]) == (119, 200, "exit")
    assert written["kernel_half"].startswith("0.1.0")
    assert run("--", "no-such-command").status == CANNOT_RUN


def test_a_panic_is_told_with_its_line(run: Run) -> None:
    done = run(*sh("echo c > /proc/sysrq-trigger; sleep 60"))
    assert done.status == PANIC
    assert "sysrq triggered crash" in done.stderr.decode().splitlines()[-1]


def test_an_oops_is_a_panic(run: Run) -> None:
    """A fault in the kernel, in the process that asked for it."""
    done = run("-p", "panic_on_warn=1", *sh("echo 1 > /proc/sys/kernel/panic_on_oops; echo c > /proc/sysrq-trigger"))
    assert done.status == PANIC


def test_a_hang_is_noticed_by_the_watchdog(run: Run) -> None:
    """Process 1 sleeps instead of speaking."""
    done = run("--watchdog", "8", "-p", "rdinit=/bin/busybox -- sleep 1000", "--", "true")
    assert done.status == HANG
    assert "did not reach init for 8 s" in done.stderr.decode()


def test_a_reset_before_the_end_is_a_panic(run: Run) -> None:
    done = run(*sh("echo b > /proc/sysrq-trigger; sleep 60"))
    assert done.status == PANIC
    assert "reset itself" in done.stderr.decode()


def test_power_off_is_an_orderly_end(run: Run) -> None:
    done = run(*sh("echo o > /proc/sysrq-trigger; sleep 60"))
    assert done.status == 0
    assert "powered off" in done.stderr.decode()


def test_time_out(run: Run) -> None:
    done = run("--timeout", "4", "--", "sleep", "100")
    assert done.status == TIMEOUT


@pytest.mark.parametrize("cpus", [2, 8])
def test_smp(run: Run, cpus: int) -> None:
    done = run("-c", str(cpus), "--", "grep", "-c", "^processor", "/proc/cpuinfo")
    assert done.stdout.decode().strip() == str(cpus)


def test_memory_beyond_4_gib(run: Run) -> None:
    done = run("-m", "5G", "--", "grep", "MemTotal", "/proc/meminfo")
    assert int(done.stdout.split()[1]) > 4.7 * (1 << 20)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_disks_keep_what_was_written(run: Run, share: Path, transport: str) -> None:
    """Nothing is synced by the guest: the end of the command powers it off in good order."""
    disk, fixed = share / f"{transport}.img", share / f"{transport}-ro.img"
    disk.write_bytes(bytes(4 << 20))
    fixed.write_bytes(b"fixed".ljust(512))
    script = "head -c 5 /dev/vdb; cat /sys/block/vda/serial; echo hello > /dev/vda; ! echo x > /dev/vdb"
    disks = ("-d", f"{disk},serial=one", "-d", f"{fixed},ro")
    done = run("--transport", transport, *sh(script, *disks))
    assert (done.status, done.stdout.decode()) == (0, "fixedone")
    assert disk.read_bytes().startswith(b"hello\n")
    assert fixed.read_bytes() == b"fixed".ljust(512)


def test_a_script_on_standard_input(run: Run) -> None:
    done = run(stdin=b"echo sum $((40 + 2))\nexit 5\n")
    assert (done.status, done.stdout) == (5, b"sum 42\n")
    assert run(stdin=b"").status == 0


def test_a_bzimage_is_booted_as_its_vmlinux(run: Run, kernel: Kernel) -> None:
    done = run("-k", kernel.image, "--exits", "--", "uname", "-r")
    assert done.stdout.decode().strip() == kernel.release
    assert "exits" in done.stderr.decode()


@pytest.mark.parametrize("form", ["bzImage", "vmlinux"])
def test_linux_by_its_own_boot_protocol(host: HostVm, kernel: Kernel, form: str) -> None:
    """bzImage: the 64-bit entry; vmlinux: PVH. Through the library, which unpacks nothing."""
    image = kernel.image if form == "bzImage" else vmlinux(kernel.image)
    tree = Path(LAUNCHER).parents[1]
    argv = [str(tree / "build/venv/bin/python3"), str(Path(__file__).with_name("library.py"))]
    environment = {"PYTHONPATH": str(tree / "tools/kvm")}
    done = host.exec([*argv, image, guest_initramfs(kernel, init=init_binary())], env=environment, timeout=SECONDS)
    assert done.shell_status == 0, done.stderr.decode()


def test_both_halves_match(host: HostVm) -> None:
    done = host.exec([LAUNCHER, "version"], env={"GIT_CONFIG_COUNT": "0"}, timeout=60)
    assert "kernel half  0.1.0" in done.stdout.decode()
    assert "no kernel half" not in done.stdout.decode()


def test_a_kernel_half_of_another_commit_is_refused(host: HostVm, tmp_path: Path) -> None:
    """The tree's kernel/ has changed since the loaded module was built: overlaid in the host, which forgets it."""
    source = Path(LAUNCHER).parents[1] / "kernel/main.c"
    host.exec(["sh", "-c", f"echo '/* changed */' >> {source}"], timeout=30)
    try:
        done = host.exec([LAUNCHER, "run", "--host", "local", "--", "true"], timeout=60)
        assert done.status == CANNOT_RUN
        assert "was not built from" in done.stderr.decode()
        done = host.exec([LAUNCHER, "run", "--host", "local", "--allow-mismatch", "--", "true"], timeout=60)
        assert done.status == 0
    finally:
        host.exec(["sh", "-c", f"sed -i '$d' {source}"], timeout=30)
