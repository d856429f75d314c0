# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm run`: one machine, from a command line that users of QEMU and kvmtool know.

examples:
  unikvm run payload.elf                      a bare-metal payload (PVH, multiboot; *.bin: flat)
  unikvm run                                  Debian's kernel and a shell
  unikvm run -k arch/x86/boot/bzImage -- CMD  your kernel, one command, its exit status
  unikvm run -d disk.img,ro -m 1G -c 2        a disk, more memory, two CPUs

keys: Ctrl-A x leaves, Ctrl-A h helps.
status: CMD's own (0-119); 120 panic, 121 hang, 122 KVM error, 123 VMM error, 124 time-out, 125 could not run.
"""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.machine.config import Disk

USAGE = "unikvm run [OPTION...] [KERNEL] [-- CMD...]"
HOSTS = ("auto", "local", "vm")
CONSOLES = ("virtio", "serial", "none")
TRANSPORTS = ("pci", "mmio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", nargs="?", metavar="KERNEL", help="the same as --kernel")
    add(
        "-k",
        "--kernel",
        metavar="KERNEL",
        help="path, .deb, build tree or Debian package (default: Debian's cloud kernel)",
    )
    add("-i", "--initrd", metavar="FILE", help="initramfs (default: a small one with busybox)")
    add("-p", "--append", default="", metavar="ARGS", help="more for the kernel's command line")
    add("-m", "--mem", default="256M", metavar="SIZE", help="memory, 512M or 2G (default: 256M)")
    add("-c", "--cpus", type=int, default=1, metavar="N", help="vCPUs, 1 to 8 (default: 1)")
    add("-d", "--disk", action="append", default=[], metavar="FILE", help="raw image, FILE[,ro][,serial=S]; repeatable")
    add("--console", choices=CONSOLES, metavar="KIND", help="virtio, serial or none (default: virtio; payload: serial)")
    add(
        "--transport",
        choices=TRANSPORTS,
        default="pci",
        metavar="BUS",
        help="of virtio devices: pci or mmio (default: pci)",
    )
    add("-n", "--name", default="unikvm", metavar="NAME", help="the guest's host name")
    add(
        "--host",
        choices=HOSTS,
        default="auto",
        metavar="WHERE",
        help="auto, local (this machine) or vm (default: auto)",
    )
    add("--host-kernel", metavar="SPEC", help="kernel of the host VM (default: Debian's)")
    add("--share", action="append", default=[], metavar="DIR", help="directory that a host VM may write to; repeatable")
    add("--timeout", type=float, metavar="S", help="end the guest after S seconds, status 124")
    add("--watchdog", type=float, default=0.0, metavar="S", help="with CMD: S seconds without life are a hang")
    add("--result", metavar="FILE", help="write the outcome as JSON")
    add("--exits", action="store_true", help="at the end, the kernel half's account of exits, on stderr")
    add("--testdev", action="store_true", help="QEMU's pc-testdev, for kvm-unit-tests")
    add("--no-kernel-half", action="store_true", help="leave the kernel half alone")
    add("--allow-mismatch", action="store_true", help="go on when the halves are of different commits")
    add("-v", "--verbose", action="store_true", help="kernel messages, and the seconds of each phase")
    add("-q", "--quiet", action="store_true", help="no progress, no last line")
    add("--prepared", help=argparse.SUPPRESS)  # a plan that the front end of a host VM made


def parse_disk(text: str) -> Disk:
    """A Disk of `FILE[,ro][,serial=S]`."""
    from unikvm.errors import CannotRun
    from unikvm.machine.config import Disk

    path, *options = text.split(",")
    readonly, serial = False, ""
    for option in options:
        if option in ("ro", "readonly"):
            readonly = True
        elif option.startswith("serial="):
            serial = option.removeprefix("serial=")
        else:
            raise CannotRun(f"--disk {text}: no option {option!r}", hint="FILE[,ro][,serial=S]")
    return Disk(path, readonly, serial)


def main(args: argparse.Namespace) -> int:
    from unikvm.cli.plan import choose_host, load, make_plan

    if args.prepared:
        from unikvm.cli.run_local import run

        return run(load(args.prepared))
    plan = make_plan(args, tuple(parse_disk(text) for text in args.disk))
    if choose_host(args.host, plan) == "local":
        from unikvm.cli.run_local import run
    else:
        from unikvm.cli.run_vm import run
    return run(plan)
