# SPDX-License-Identifier: GPL-2.0-only
"""What the benches share: the guest that both VMMs boot, their command lines, and the host VM they run in."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm, with_host
from unikvm.images.artifacts import LAUNCHER, init_binary, kernel_half
from unikvm.images.guest import MODULES, guest_initramfs
from unikvm.images.initramfs import Initramfs
from unikvm.images.kernel import find_kernel
from unikvm.images.vmlinux import vmlinux
from unikvm.observe.reasons import module_parameters
from unikvm.units import GIB

TREE = Path(__file__).resolve().parent.parent.parent
BENCH = TREE / "build/bench"  # what is made for the benches
QEMU = "qemu-system-x86_64"
QEMU_KVM = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm"]
QEMU_KVM += ["-name", "bench,debug-threads=on"]  # threads have names
LEAN = "initcall_blacklist=tracer_init_tracefs"  # a Debian kernel's tracefs takes megabytes
Figures = dict[str, float]


class Stalled(Exception):
    """A host VM did not get on, or a guest in it died: QEMU's emulation of SVM does that now and then."""


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Guest:
    """The kernel and initramfs that both VMMs boot. `modules`: more than every guest has; `tools`: static programs that
    lie in its /bin as well; `small`: it is to need little memory."""

    def __init__(self, modules: Sequence[str] = (), tools: Sequence[Path] = (), *, small: bool = False) -> None:
        kernel = find_kernel(None)
        self.host_kernel = kernel
        self.vmlinux = vmlinux(kernel.image)
        self.initramfs = guest_initramfs(kernel, init=init_binary(), modules=(*MODULES, *modules))
        if tools:
            self.initramfs = with_tools(self.initramfs, tools)
        if small:
            self.initramfs = packed(self.initramfs)
        # What `unikvm run` gives to a kernel and an initramfs of the user's, word for word.
        self.cmdline = "quiet loglevel=3 nokaslr console=ttyS0 console=hvc0 panic=-1"
        self.append: list[str] = []
        if small:
            self.cmdline += f" {LEAN}"
            self.append = ["-p", LEAN]

    def ours(self, *more: str, memory: int = 256) -> list[str]:
        images = ["-k", self.vmlinux, "-i", self.initramfs, "-m", f"{memory}M"]
        return [LAUNCHER, "run", "--host", "local", *images, *self.append, "-q", *more]

    def qemu(self, memory: int = 256) -> list[str]:
        """On microvm, QEMU's quickest machine to boot, whose devices are on virtio-mmio."""
        machine = ["-M", "microvm,rtc=on", "-cpu", "host", "-m", str(memory), "-smp", "1", "-no-reboot"]
        console = ["-device", "virtio-serial-device", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c"]
        console += ["-device", "virtio-rng-device", "-serial", "null"]
        return [*QEMU_KVM, *machine, *console, *self._images()]

    def qemu_pci(self, *more: str) -> list[str]:
        """On q35, with virtio-pci and MSI-X: QEMU's quickest devices. Guest RAM can be shared with other processes."""
        memory = ["-m", "256", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"]
        machine = ["-M", "q35,memory-backend=ram", "-cpu", "host", "-smp", "1", "-no-reboot"]
        console = ["-device", "virtio-serial-pci", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c"]
        console += ["-device", "virtio-rng-pci", "-serial", "null"]
        return [*QEMU_KVM, *memory, *machine, *console, *more, *self._images()]

    def _images(self) -> list[str]:
        return ["-kernel", self.vmlinux, "-initrd", self.initramfs, "-append", self.cmdline]


def with_tools(initramfs: str, tools: Sequence[Path]) -> str:
    """A copy of `initramfs` in build/bench, with `tools` in its /bin."""
    archive = Initramfs()
    for tool in tools:
        archive.add_file(f"/bin/{tool.name}", tool.read_bytes())
    path = BENCH / f"{Path(initramfs).name}-{'-'.join(tool.name for tool in tools)}"
    BENCH.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(Path(initramfs).read_bytes())
        file.write(bytes(-file.tell() % 4))
        archive.write(file)
    return str(path)


def packed(initramfs: str) -> str:
    """A compressed copy of `initramfs` in build/bench."""
    path = BENCH / f"{Path(initramfs).name}.gz"
    BENCH.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(Path(initramfs).read_bytes()))
    return str(path)


def built(name: str) -> Path:
    """What the build made of tests/`name`, the newest."""
    found = sorted(TREE.glob(f"build/*/tests/{name}"), key=os.path.getmtime)
    if not found:
        raise SystemExit(f"bench: no tests/{name} is built: make build")
    return found[-1]


def host_config(guest: Guest, *, icount: bool, modules: tuple[str, ...] = (), memory: int = 2 * GIB) -> HostConfig:
    return HostConfig(
        kernel=guest.host_kernel, init=init_binary(), icount=icount, memory=memory, modules=modules, patience=4.0
    )


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


def python_in(
    host: HostVm, script: str, *arguments: str, into: Callable[[bytes], object] | None = None, timeout: float = 900
) -> str:
    """Run a bench script of this folder in the host; its output, where it does not go `into` something. What it says on
    stderr, the user sees at once."""
    python = str(TREE / "build/venv/bin/python3")
    argv = [python, str(TREE / "tests/bench" / script), *arguments]
    environment = {"PYTHONPATH": f"{TREE}/tools/kvm:{TREE}/tests"}
    done = host.exec(argv, env=environment, stdout=into, stderr=2, timeout=timeout)
    if done.timed_out:
        raise Stalled(f"{script} in the host VM did not end in {timeout:g} s")
    if done.shell_status:
        raise Stalled(f"{script} in the host VM ended with {done.shell_status}")
    return done.stdout.decode()
