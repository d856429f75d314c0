# SPDX-License-Identifier: GPL-2.0-only
"""From a command line to what will run and where: the plan, which a host VM is given ready-made."""

from __future__ import annotations

import os
import sys

from unikvm.arch.x86_64.topology import XAPIC_IDS, Topology
from unikvm.errors import CannotRun
from unikvm.machine.config import Config, Disk, Firmware, Net, Pmem
from unikvm.record import Record
from unikvm.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Say = Callable[[str], None]


class Export(Record):
    """A directory of this machine that the guest mounts at `where`; its root has the tag "root"."""

    tag: str
    path: str
    where: str
    readonly: bool


class Plan(Record):
    """One run. `linux`: the guest is a Linux, not a payload; `tty`: stdin and stdout are a terminal."""

    config: Config
    linux: bool
    command: tuple[str, ...] = ()
    tty: bool = False
    own_init: bool = False  # the guest's init is ours, so it powers off by itself and obeys
    timeout: float | None = None
    watchdog: float = 0.0
    result: str | None = None
    verbose: int = 0  # 1: seconds of each phase; 2: kernel messages too
    quiet: bool = False
    exits: bool = False
    release: str = ""  # of the user half, where the caller knows it already
    spec: str = ""  # the guest's kernel as the user named it
    reachable: bool = False  # by its name while it runs: one that has a name, or a terminal
    named: bool = False  # the name is the user's choice
    front: int = 0  # in a host VM: the process outside that passes on what is for this guest
    host_kernel: str | None = None
    shares: tuple[str, ...] = ()
    exports: tuple[Export, ...] = ()
    fstype: str = "virtiofs"  # of the exports, or 9p
    root_type: str = ""  # the file system on the guest's root image, which is the first of its pmems
    binds: tuple[tuple[str, str], ...] = ()  # (what, where) in the guest, once its root is there
    cwd: str = "/"  # of the command, as are the next two
    env: tuple[str, ...] | None = None  # NAME=VALUE; None: what the terminal needs
    user: str = ""  # UID:GID,GROUP...; empty: root

    def is_shared(self, path: str) -> bool:
        """Whether a host VM may write to `path`, so that it stays."""
        return any(path.startswith(f"{share}/") for share in self.shares)

    def dump(self) -> str:
        """JSON for `load`."""
        import json

        return json.dumps(self.asdict())


def load(text: str) -> Plan:
    """The plan that `dump` wrote."""
    import json

    fields = json.loads(text)
    config = fields.pop("config")
    if config["net"] is not None:
        config["net"] = Net(**config["net"] | {"forwards": tuple(config["net"]["forwards"])})
    if config["firmware"] is not None:
        config["firmware"] = Firmware(**config["firmware"])
    if config["topology"] is not None:
        config["topology"] = Topology(**config["topology"])
    config["pin"] = tuple(config["pin"])
    disks = tuple(Disk(**disk) for disk in config.pop("disks"))
    config["pmems"] = tuple(Pmem(**pmem) for pmem in config["pmems"])
    fields["exports"] = tuple(Export(**export) for export in fields["exports"])
    fields["binds"] = tuple((what, where) for what, where in fields["binds"])
    for name in ("command", "shares", "env"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Plan(Config(**config, disks=disks), **fields)


def make_plan(args: Any, disks: tuple[Disk, ...], *, linux: bool) -> Plan:
    """What `args` ask for, with every image found, fetched and unpacked. Raises CannotRun."""
    if args.image and args.kernel:
        raise CannotRun("the kernel is named twice", hint=f"{args.image!r} and --kernel {args.kernel!r}")
    spec = args.kernel or args.image
    console = args.console or ("virtio" if linux else "serial")
    command = tuple(args.command)
    if linux and not command and args.initrd is None and console != "serial" and not os.isatty(0):
        command = ("sh",)  # a script on standard input: exact bytes and a status, not a terminal without a user
    reachable = bool(args.name) or (linux and not command)
    config = Config(
        kernel=spec or "",
        initrd=args.initrd,
        cmdline=args.append,
        memory=parse_size(args.mem.partition(",")[0]),
        **_cpus(args.cpus),
        disks=disks,
        console=console,
        transport=args.transport,
        hotplug=reachable and bool(linux or args.firmware) and args.transport == "pci",
        name=args.name or "unikvm",
        testdev=args.testdev,
        kernel_half=not args.no_kernel_half,
        allow_mismatch=args.allow_mismatch,
    )
    plan = Plan(
        config,
        linux,
        command=command,
        tty=os.isatty(0) and os.isatty(1),
        timeout=args.timeout,
        watchdog=args.watchdog,
        result=args.result,
        verbose=args.verbose,
        quiet=args.quiet,
        exits=args.exits,
        spec=spec or "Debian's",
        reachable=reachable,
        named=bool(args.name),
        host_kernel=args.host_kernel,
        shares=tuple(os.path.abspath(share) for share in args.share),
    )
    if args.firmware:
        from unikvm.cli.options.firmware import add as add_firmware

        plan = add_firmware(plan, args)
    if "," in args.mem or args.pmem:
        from unikvm.cli.options.memory import add as add_memory

        plan = add_memory(plan, args)
    if args.net != "none" or args.forward:
        from unikvm.cli.options.network import add as add_net

        plan = add_net(plan, args)
    if args.root or args.rwdir or args.user or args.env or args.cwd:
        from unikvm.cli.options.directories import add

        plan = add(plan, args)
    _check(plan)
    return _with_linux(plan, spec) if linux else plan


def _cpus(text: str) -> dict[str, Any]:
    if text.isdecimal():
        return {"cpus": int(text)}
    from unikvm.cli.options.cpus import parse

    return parse(text)


def _check(plan: Plan) -> None:
    """What can be wrong before anything is fetched."""
    if plan.command and not plan.linux:
        raise CannotRun("a payload runs no command", hint="leave out `-- CMD`, or give a Linux kernel")
    if plan.timeout is not None and plan.timeout <= 0:
        raise CannotRun(f"a time-out of {plan.timeout:g} s is not possible")
    for share in plan.shares:
        if not os.path.isdir(share):
            raise CannotRun(f"--share {share}: no such directory")
    for path in (*(disk.path for disk in plan.config.disks), *(pmem.path for pmem in plan.config.pmems)):
        from unikvm.cli.options.values import check_image

        check_image(path)
    if plan.config.initrd and not os.path.isfile(plan.config.initrd):
        raise CannotRun(f"no such initrd: {plan.config.initrd}")


def _with_linux(plan: Plan, spec: str | None) -> Plan:
    """Find the kernel, unpack it, and give it an initramfs and a command line."""
    own_init = plan.config.initrd is None or bool(plan.command)
    if not own_init and spec and os.path.isfile(spec) and not spec.endswith(".deb"):
        # Everything is named: nothing to look up but the kernel in a compressed image.
        kernel, initrd = spec, plan.config.initrd
    else:
        from unikvm.images.artifacts import init_binary
        from unikvm.images.guest import MODULES, OPTIONAL_MODULES, guest_initramfs
        from unikvm.images.kernel import find_kernel

        tell = _progress(plan)
        found = find_kernel(spec, progress=tell)
        kernel = found.image
        modules: tuple[str, ...] = MODULES
        optional: tuple[str, ...] = OPTIONAL_MODULES
        if plan.exports:
            from unikvm.cli.options.directories import guest_modules, with_modules

            plan = with_modules(plan, found.release, found.modules, tell)
            modules += guest_modules(plan, found.release, found.modules)
        if plan.config.net is not None or plan.config.hotplug:
            from unikvm.cli.options import network

            if plan.config.net is not None:
                modules += network.GUEST_MODULES
            optional += (*network.GUEST_MODULES, *network.OPTIONAL_MODULES)
        if plan.reachable:
            from unikvm.cli import agent

            optional += agent.GUEST_MODULES
        if plan.config.balloon or plan.config.max_memory or plan.config.pmems:
            from unikvm.cli.options.memory import optional_modules, root_modules

            modules += root_modules(plan)
            optional += optional_modules(plan)
        initrd = guest_initramfs(
            found, init=init_binary(), base=plan.config.initrd, modules=modules, optional=optional, progress=tell
        )
    if not is_elf(kernel):
        from unikvm.images.vmlinux import vmlinux

        kernel = vmlinux(kernel)
    config = plan.config.replace(kernel=kernel, initrd=initrd, cmdline=command_line(plan, own_init))
    return plan.replace(config=config, own_init=own_init)


def is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def command_line(plan: Plan, own_init: bool) -> str:
    """The guest kernel's command line. `quiet` comes first: what is said before it is read would be an exit a byte."""
    words = ["nokaslr"] if plan.verbose > 1 else ["quiet", "loglevel=3", "nokaslr"]
    if plan.config.console == "virtio":
        # hvc0's driver is a module in most kernels. Until it is loaded the serial port shows a panic, or, with all
        # messages, the early console, which ends when hvc0 begins: a byte there is an exit.
        words += ["earlyprintk=ttyS0" if plan.verbose > 1 else "console=ttyS0", "console=hvc0"]
    elif plan.config.console == "serial":
        words.append("console=ttyS0")
    words.append("panic=-1")
    if own_init:
        words.append(f"unikvm.hostname={plan.config.name}")
    if plan.config.all_cpus > plan.config.cpus and own_init:
        words.append("unikvm.plug")
    if plan.config.all_topology.last_id >= XAPIC_IDS:
        words.append(f"irqaffinity=0-{_last_short_id(plan.config)}")
    if own_init and plan.config.net is not None:
        from unikvm.cli.options.network import guest_words

        words += guest_words(plan.config.net)
    if own_init and plan.reachable:
        from unikvm.cli.agent import GUEST_WORD

        words.append(GUEST_WORD)
    if plan.config.max_memory:
        from unikvm.cli.options.memory import HOTPLUG_WORD

        words.append(HOTPLUG_WORD)
    if plan.command:
        words += ["oops=panic", "unikvm.ctl"]
    if plan.config.cmdline:
        words.append(plan.config.cmdline)
    return " ".join(words)


def _last_short_id(config: Config) -> int:
    """The last vCPU that the IOAPIC reaches, which knows IDs of 8 bits: interrupt lines must not go further."""
    topology = config.all_topology
    return max(cpu for cpu in range(topology.cpus) if topology.apic_id(cpu) < XAPIC_IDS)


def _progress(plan: Plan) -> Say:
    return (lambda _text: None) if plan.quiet else say


def say(text: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(f"unikvm: {text}\n")


def choose_host(asked: str, plan: Plan) -> str:
    """`local` or `vm`; with `auto`, what this machine is good for."""
    if asked != "auto":
        return asked
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        if not plan.quiet:
            say("no usable /dev/kvm here: using a host VM")
        return "vm"
    if not plan.linux and plan.config.firmware is None:
        return "local"
    from unikvm.machine.probe import EMULATED_BELOW_MIPS, has_hardware_flag, measure_mips

    if not has_hardware_flag() and measure_mips() < EMULATED_BELOW_MIPS:
        if not plan.quiet:
            say("this machine's KVM has no hardware virtualisation: using a host VM")
        return "vm"
    return "local" if os.path.exists("/dev/unikvm") or _can_load() else "vm"


def _can_load() -> bool:
    """Whether the kernel half for this machine's kernel is built, and may be loaded."""
    from unikvm.images.artifacts import kernel_half

    return os.geteuid() == 0 and kernel_half(os.uname().release) is not None
