# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm run`: one machine, from a command line that users of QEMU and kvmtool know.

examples:
  unikvm run payload.elf                      a bare-metal payload (PVH, multiboot; *.bin: flat)
  unikvm run                                  Debian's kernel and a shell
  unikvm run -k arch/x86/boot/bzImage -- CMD  your kernel, one command, its exit status
  unikvm run -d disk.img,ro -m 1G -c 2        a disk, more memory, two CPUs
  unikvm run --net user --forward 8080:80     a network, and port 80 of the guest at localhost:8080
  unikvm run --root / --rwdir . -- make test  this machine's files in the guest; only . is written to

keys: Ctrl-A x leaves, Ctrl-A h helps.
status: CMD's own (0-119); 120 panic, 121 hang, 122 KVM error, 123 VMM error, 124 time-out, 125 could not run.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator
    from typing import Any

    from unikvm.machine.config import Disk

USAGE = "unikvm run [OPTION...] [KERNEL] [-- CMD...]"
HOSTS = ("auto", "local", "vm")
CONSOLES = ("virtio", "serial", "none")
TRANSPORTS = ("pci", "mmio")


# Each option once: names, metavar, default, kind (str, int, float, list, bool, count; dir: / without a value), help.
OPTIONS: tuple[tuple[str, str, str | int | float | None, str, str], ...] = (
    ("-k --kernel", "KERNEL", None, "str", "path, .deb, build tree or Debian package (default: Debian's cloud kernel)"),
    ("-i --initrd", "FILE", None, "str", "initramfs (default: a small one with busybox)"),
    ("-p --append", "ARGS", "", "str", "more for the kernel's command line"),
    ("-m --mem", "SIZE", "256M", "str", "memory, 2G[,balloon][,max=8G][,hugepages] (default: 256M)"),
    ("--pmem", "FILE", None, "list", "image as memory, FILE[,ro][,cow], /dev/pmem0 in the guest; repeatable"),
    ("-c --cpus", "N", "1", "str", "vCPUs, 1 to 255, N[,max=N][,sockets=N][,cores=N][,threads=N][,model=M][,pin=LIST]"),
    (
        "-d --disk",
        "FILE",
        None,
        "list",
        "FILE[,ro][,serial=S][,format=F][,direct][,writethrough][,queues=N]; repeatable",
    ),
    ("--console", "KIND", None, "str", "virtio, serial or none (default: virtio; of a payload: serial)"),
    ("--firmware", "FW", None, "str", "seabios, ovmf or an image, boots a --disk: FW[,vars=FILE][,debug]"),
    ("--transport", "BUS", "pci", "str", "of virtio devices: pci or mmio (default: pci)"),
    ("-n --name", "NAME", None, "str", "the guest's name, for `unikvm list`, `stat`, `stop` … (default: unikvm)"),
    ("--host", "WHERE", "auto", "str", "auto, local (this machine) or vm (default: auto)"),
    ("--host-kernel", "SPEC", None, "str", "kernel of the host VM (default: Debian's)"),
    ("--share", "DIR", None, "list", "directory that a host VM may write to; repeatable"),
    ("--root", "DIR", None, "dir", "DIR (default: /) or image as the root; what is written there is forgotten"),
    ("--rwdir", "DIR", None, "list", "directory that the guest writes to, DIR or GUEST=HOST; repeatable"),
    (
        "--net",
        "KIND",
        "none",
        "str",
        "user, tap[=NAME][,queues=N] or hub=NAME, both [,ip=A/BITS][,gw=A]; none (default)",
    ),
    ("--forward", "H:G", None, "list", "with --net user: port H of the host is the guest's G; H:G/udp; repeatable"),
    ("--cwd", "DIR", None, "str", "CMD's working directory in the guest (default with --root: this one)"),
    ("--user", "USER", None, "str", "run CMD as NAME of the guest's root, UID or UID:GID (default: root)"),
    ("--env", "NAME=VALUE", None, "list", "more for CMD's environment; NAME alone: as it is here; repeatable"),
    ("--timeout", "S", None, "float", "end the guest after S seconds, status 124"),
    ("--watchdog", "S", 0.0, "float", "with CMD: S seconds without life are a hang, status 121"),
    ("--result", "FILE", None, "str", "write the outcome as JSON"),
    ("--exits", "", False, "bool", "at the end, the kernel half's account of exits, on stderr"),
    ("--testdev", "", False, "bool", "QEMU's pc-testdev, for kvm-unit-tests"),
    ("--no-kernel-half", "", False, "bool", "leave the kernel half alone"),
    ("--allow-mismatch", "", False, "bool", "go on when the halves are of different commits"),
    ("-v --verbose", "", 0, "count", "the seconds of each phase; twice: kernel messages too"),
    ("-q --quiet", "", False, "bool", "no progress, no last line"),
    ("--prepared", "PLAN", None, "str", ""),  # what the front end of a host VM made
)
CHOICES = {"console": CONSOLES, "transport": TRANSPORTS, "host": HOSTS}


class Options:
    """What was asked for, by destination name, as argparse's namespace."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def destination(names: str) -> str:
    return names.split()[-1].lstrip("-").replace("-", "_")


def quick_parse(argv: list[str]) -> Options | None:
    """The options of a plain command line; None where argparse has to look (help, mistakes, rare forms).

    argparse and what it imports take as long as a payload's whole run.
    """
    by_name = {name: option for option in OPTIONS for name in option[0].split()}
    values: dict[str, Any] = {"image": None}
    for names, _, default, kind, _ in OPTIONS:
        values[destination(names)] = [] if kind == "list" else default
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            if values["image"] is not None:
                return None
            values["image"] = word
            continue
        option = by_name.get(word)
        if option is None or not _take(values, destination(option[0]), option[3], words):
            return None
    return Options(**values)


def _take(values: dict[str, Any], name: str, kind: str, words: Iterator[str]) -> bool:
    """Put one option into `values`; False where its value is missing or wrong."""
    if kind == "bool":
        values[name] = True
        return True
    if kind == "count":
        values[name] += 1
        return True
    word = next(words, "/" if kind == "dir" else "-")
    if word.startswith("-") or (name in CHOICES and word not in CHOICES[name]):
        return False
    try:
        value = int(word) if kind == "int" else float(word) if kind == "float" else word
    except ValueError:
        return False
    if kind == "list":
        values[name].append(value)
    else:
        values[name] = value
    return True


def add_arguments(parser: ArgumentParser) -> None:
    from argparse import SUPPRESS

    parser.add_argument("image", nargs="?", metavar="KERNEL", help="the same as --kernel")
    kinds: dict[str, dict[str, Any]] = {
        "str": {},
        "dir": {"nargs": "?", "const": "/"},
        "int": {"type": int},
        "float": {"type": float},
        "list": {"action": "append"},
        "bool": {"action": "store_true"},
        "count": {"action": "count"},
    }
    for names, metavar, default, kind, text in OPTIONS:
        keywords = {**kinds[kind], "default": [] if kind == "list" else default, "help": text or SUPPRESS}
        if metavar:
            keywords["metavar"] = metavar
        if destination(names) in CHOICES:
            keywords["choices"] = CHOICES[destination(names)]
        parser.add_argument(*names.split(), **keywords)


def main(args: Options | Namespace) -> int:
    linux = not args.prepared and is_linux(args)
    new = None
    if not (linux or args.prepared or args.firmware or args.host == "vm") and os.access("/dev/kvm", os.R_OK | os.W_OK):
        from unikvm.machine.newvm import NewVm

        new = NewVm()  # now, as KVM works on it while the rest is imported
    from unikvm.cli.plan import choose_host, load, make_plan
    from unikvm.cli.terminal import end_on_signals

    end_on_signals()
    if args.prepared:
        from unikvm.cli import run_local

        return run_local.run(load(args.prepared))
    disks: tuple[Disk, ...] = ()
    if args.disk:
        from unikvm.cli.options.disks import parse_disk

        disks = tuple(parse_disk(text) for text in args.disk)
    plan = make_plan(args, disks, linux=linux)
    if choose_host(args.host, plan) == "vm":
        from unikvm.cli import run_vm

        return run_vm.run(plan)
    from unikvm.cli import run_local

    if plan.linux and plan.config.kernel_half:
        run_local.load_kernel_half(plan)
    return run_local.run(plan, new)


def is_linux(args: Options | Namespace) -> bool:
    """Whether the guest will be a Linux, and not a payload or what firmware boots."""
    if args.firmware:
        return False
    spec = args.kernel or args.image
    if not spec or not os.path.isfile(spec):
        return True  # a build tree or a package
    from unikvm.boot import kind

    return kind.is_linux(spec)
