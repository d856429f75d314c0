# SPDX-License-Identifier: GPL-2.0-only
"""Memory that comes and goes, huge pages, and images as memory (--mem, --pmem, --root IMAGE).

Imported for runs that ask for any of it.
"""

from __future__ import annotations

import os

from unikvm.cli.options.values import split
from unikvm.cli.plan import Plan
from unikvm.errors import CannotRun
from unikvm.machine.config import Config, Pmem
from unikvm.memory import PAGE
from unikvm.sys.mapping import HUGE_PAGE
from unikvm.units import GIB, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unikvm.hostvm.host import HostVm

DEFAULT_HOST_MEMORY = 2 * GIB
HOST_OVERHEAD = GIB // 2
BALLOON_MODULES = ("virtio_balloon",)
HOTPLUG_MODULES = ("virtio_mem",)
PMEM_MODULES = ("virtio_pmem", "nd_pmem")
# Memory that is plugged in is of no use until it is online, and cannot be pulled out again once the kernel has put its
# own data there.
HOTPLUG_WORD = "memhp_default_state=online_movable"
ROOT_DEVICE = "/dev/pmem0"

# Where a file system has its magic number: name, offset, bytes.
_FILE_SYSTEMS = (
    ("ext4", 0x438, b"\x53\xef"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
)


def add(plan: Plan, args: Any) -> Plan:
    """`plan` with the memory that `args` ask for. CannotRun where that cannot be."""
    _, given = split("--mem", args.mem, flags=("balloon", "hugepages"), keys=("max",))
    config = plan.config.replace(
        max_memory=parse_size(given["max"]) if "max" in given else 0,
        balloon="balloon" in given,
        hugepages="hugepages" in given,
        pmems=tuple(parse_pmem(text) for text in args.pmem),
    )
    return plan.replace(config=config)


def parse_pmem(text: str) -> Pmem:
    """An image as `FILE[,ro][,cow]` describes it."""
    path, given = split("--pmem", text, flags=("ro", "cow"))
    if len(given) > 1:
        raise CannotRun(f"--pmem {text}: both ro and cow", hint="ro: not written to; cow: what is written is forgotten")
    return Pmem(os.path.abspath(path), next(iter(given), "rw"))


def with_root(plan: Plan, path: str) -> Plan:
    """`plan` with the image `path` as the guest's root, before all other images."""
    kind = file_system(path)
    if not kind:
        known = ", ".join(name for name, _, _ in _FILE_SYSTEMS)
        raise CannotRun(f"--root {path}: neither a directory nor an image with a file system", hint=f"one of {known}")
    pmems = (Pmem(os.path.abspath(path), "cow"), *plan.config.pmems)
    return plan.replace(config=plan.config.replace(pmems=pmems), root_type=kind)


def file_system(path: str) -> str:
    """The kind of file system that an image has from its first byte on; empty where none is known."""
    try:
        with open(path, "rb") as file:
            for name, offset, magic in _FILE_SYSTEMS:
                file.seek(offset)
                if file.read(len(magic)) == magic:
                    return name
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from None
    return ""


def root_request(plan: Plan) -> tuple[str, ...]:
    """What init is asked to mount under the guest's overlay.

    With dax, files are read where they are, without a copy in the guest's memory. Not beside a device that another
    process serves: that would be handed such a file's pages for direct I/O, and has not mapped them.
    """
    outside = plan.exports or any(disk.kind != "raw" for disk in plan.config.disks)
    dax = plan.root_type == "ext4" and not outside and _block_size(plan.config.pmems[0].path) == PAGE
    return ("root", plan.root_type, ROOT_DEVICE, "dax" if dax else "")


def _block_size(path: str) -> int:
    """Of an ext4: s_log_block_size in its superblock (Linux: filesystems/ext4/super.rst)."""
    with open(path, "rb") as file:
        file.seek(0x418)
        return 1024 << min(file.read(4)[0], 16)


def root_modules(plan: Plan) -> tuple[str, ...]:
    """What the guest's root needs, beside the image's own."""
    return ("overlay",) if plan.root_type else ()


def optional_modules(plan: Plan) -> tuple[str, ...]:
    """The guest's modules for what `plan` has: built in, in some kernels."""
    config = plan.config
    modules: tuple[str, ...] = BALLOON_MODULES if config.balloon else ()
    modules += HOTPLUG_MODULES if config.max_memory else ()
    modules += PMEM_MODULES if config.pmems else ()
    return modules + ((plan.root_type,) if plan.root_type else ())


def host_memory(config: Config) -> int:
    """Bytes of a host VM in which the guest has room, beside what is there itself."""
    need = max(config.memory, config.max_memory) + HOST_OVERHEAD
    return max(DEFAULT_HOST_MEMORY, -(-need // GIB) * GIB)


def set_aside_in(host: HostVm, config: Config) -> None:
    """The huge pages of a host VM, which has nothing else to do with its memory."""
    pages = max(config.memory, config.max_memory) // HUGE_PAGE
    host.exec(["sh", "-c", f"echo {pages} > /proc/sys/vm/nr_hugepages"])
