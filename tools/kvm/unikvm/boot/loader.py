# SPDX-License-Identifier: GPL-2.0-only
"""Chooses the loader by what the file is."""

from __future__ import annotations

import os

from unikvm.boot.image import Entry, Image, Request
from unikvm.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["Entry", "load", "load_image"]

_HEAD = 0x206
_FLAT_SUFFIX = ".bin"


def load(
    path: str,
    memory: GuestMemory,
    *,
    cmdline: str = "",
    initrd: str | None = None,
    modules: Sequence[str] = (),
    rsdp: int = 0,
    flat_at: int | None = None,
) -> Entry:
    """Load the kernel at `path` into `memory` and say how to start it.

    `modules` follow the initrd: multiboot kernels find one module a file, Linux one initramfs of them all.
    `rsdp`: guest-physical address of the ACPI tables. `flat_at`: the file is a flat binary for that address,
    whatever it looks like. CannotRun when a file is missing, of no known kind, malformed, or does not fit.
    """
    opened: list[Image] = []
    try:
        image = Image.open(path)
        opened.append(image)
        opened.extend(Image.open(name) for name in (*((initrd,) if initrd else ()), *modules))
        request = Request(os.fsencode(cmdline), opened[1:], rsdp)
        return load_image(image, memory, request, flat_at=flat_at)
    finally:
        for each in opened:
            os.close(each.fd)


def load_image(image: Image, memory: GuestMemory, request: Request, *, flat_at: int | None = None) -> Entry:
    """As `load`, for files that are open. Only the loader that is needed is imported."""
    if flat_at is not None:
        from unikvm.boot import flat

        return flat.load(image, memory, request, flat_at)
    head = image.pread(_HEAD, 0)
    if head.startswith(b"\x7fELF"):
        return _load_elf(image, memory, request)
    if head[0x202:0x206] == b"HdrS":
        from unikvm.boot import bzimage

        return bzimage.load(image, memory, request)
    from unikvm.boot import multiboot

    header_at = multiboot.find_header(image)
    if header_at is not None:
        return multiboot.load(image, header_at, memory, request)
    if image.name.endswith(_FLAT_SUFFIX):
        from unikvm.boot import flat

        return flat.load(image, memory, request)
    if image.size == 0:
        raise image.bad("it is empty")
    raise image.bad(
        "it is not a kernel that unikvm knows",
        f"ELF with a PVH note, bzImage, multiboot, or a flat binary named *{_FLAT_SUFFIX}",
    )


def _load_elf(image: Image, memory: GuestMemory, request: Request) -> Entry:
    from unikvm.boot import elf, pvh

    parsed = elf.parse(image)
    if pvh.entry_point(image, parsed) is not None:
        return pvh.load(image, parsed, memory, request)
    from unikvm.boot import multiboot

    header_at = multiboot.find_header(image)
    if header_at is not None:
        return multiboot.load(image, header_at, memory, request)
    if parsed.bits == 64 and pvh.is_linux(image, parsed):
        from unikvm.boot import bzimage

        return bzimage.load_vmlinux(image, parsed, memory, request)
    raise image.bad(
        "it has neither a PVH note nor a multiboot header",
        "build the kernel with CONFIG_PVH=y, or boot its bzImage",
    )
