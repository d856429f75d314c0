# SPDX-License-Identifier: GPL-2.0-only
"""Sizes as people write them."""

from __future__ import annotations

from unikvm.errors import CannotRun

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {"": MIB, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `512M`, `2G`, `1.5g`; a bare number counts MiB, as in QEMU and kvmtool."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise CannotRun(f"bad size {text!r}", hint="write it as 512M or 2G") from None
    if size <= 0:
        raise CannotRun(f"bad size {text!r}: it must be more than nothing")
    return size


def format_size(size: int) -> str:
    """The shortest exact form: 256M, 4G, 513K."""
    for unit, name in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"
