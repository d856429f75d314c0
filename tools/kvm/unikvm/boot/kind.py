# SPDX-License-Identifier: GPL-2.0-only
"""Whether a file is a Linux kernel, which has an init, a console and modules, or a payload, which has nothing."""

from __future__ import annotations

import os

from unikvm.boot import elf, pvh
from unikvm.boot.image import Image
from unikvm.errors import CannotRun


def is_linux(path: str) -> bool:
    """Whether the file is a Linux kernel (bzImage, .deb or vmlinux) and not a payload."""
    if path.endswith(".deb"):
        return True
    with open(path, "rb") as file:
        head = file.read(0x206)
    if not head.startswith(b"\x7fELF"):
        return head[0x202:0x206] == b"HdrS"
    image = Image.open(path)
    try:
        parsed = elf.parse(image)
        found = pvh.entry_point(image, parsed) or (0, pvh.is_linux(image, parsed))
    except CannotRun:
        return False  # the loader says what is wrong with it
    finally:
        os.close(image.fd)
    return found[1]
