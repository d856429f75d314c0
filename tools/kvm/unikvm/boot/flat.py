# SPDX-License-Identifier: GPL-2.0-only
"""A flat binary: loaded as it is at an address below 1 MiB, and started there in 16-bit real mode."""

from __future__ import annotations

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import REAL
from unikvm.boot.image import Entry, Image, Request
from unikvm.memory import GuestMemory

DEFAULT_ADDRESS = 0x7C00  # where a PC's firmware puts a boot sector
_STACK = 0x7C00


def load(image: Image, memory: GuestMemory, request: Request, address: int = DEFAULT_ADDRESS) -> Entry:
    """Load the whole file at `address`. SP is 0x7c00: an image at a lower address sets up its own stack."""
    if request.cmdline or request.modules:
        raise image.bad("a flat binary takes no command line and no initrd")
    if not 0 <= address < layout.EBDA:
        raise image.bad(f"a flat binary cannot start at {address:#x}", f"below {layout.EBDA:#x}")
    if image.size == 0:
        raise image.bad("it is empty")
    end = address + image.size
    if end > layout.ACPI:
        raise image.bad(f"its {image.size} bytes do not fit between {address:#x} and {layout.ACPI:#x}")
    memory.readinto_from(image.fd, 0, address, image.size)
    return Entry(REAL, {"rip": address, "rsp": _STACK})
