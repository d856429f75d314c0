# SPDX-License-Identifier: GPL-2.0-only
"""Reads along on a guest's console, to tell a panic from an orderly reset and to say what the guest said of it."""

from __future__ import annotations

TAIL = 16 << 10  # bytes kept; a panic's report is printed at the end
_MARKS = (b"Kernel panic - not syncing", b"\nOops: ", b" Oops: ", b"BUG: unable to handle", b"kernel BUG at ")


class PanicWatch:
    """The end of what the console showed."""

    def __init__(self) -> None:
        self.tail = bytearray()

    def feed(self, data: bytes) -> None:
        """More output."""
        self.tail += data
        if len(self.tail) > 2 * TAIL:
            del self.tail[:-TAIL]

    def text(self) -> str:
        """The line with which the kernel reported its panic or oops; empty when there was none."""
        for mark in _MARKS:
            at = self.tail.find(mark)
            if at >= 0:
                start = self.tail.rfind(b"\n", 0, at + 1) + 1
                line = bytes(self.tail[start:]).strip().split(b"\n")[0]
                return _without_timestamp(line.decode("utf-8", "replace").strip())
        return ""


def _without_timestamp(line: str) -> str:
    """Cut off printk's `[    1.234567] `."""
    return line.partition("] ")[2] if line.startswith("[") and "] " in line else line
