# SPDX-License-Identifier: GPL-2.0-only
"""What a guest's console says of a panic."""

from __future__ import annotations

import pytest

from unikvm.machine.panicwatch import TAIL, PanicWatch


@pytest.mark.parametrize(
    ("console", "text"),
    [
        (b"hello\n", ""),
        (
            b"[    1.5] Kernel panic - not syncing: sysrq triggered crash\n[    1.6] CPU: 0\n",
            "Kernel panic - not syncing: sysrq triggered crash",
        ),
        (
            b"x\r\n[ 2.0] BUG: unable to handle page fault for address: 00\r\n",
            "BUG: unable to handle page fault for address: 00",
        ),
        (b"Kernel panic - not syncing: VFS\r\n", "Kernel panic - not syncing: VFS"),
    ],
)
def test_text(console: bytes, text: str) -> None:
    watch = PanicWatch()
    for byte in console:  # split wherever a chunk may end
        watch.feed(bytes((byte,)))
    assert watch.text() == text


def test_a_flood_is_not_kept() -> None:
    watch = PanicWatch()
    for _ in range(100):
        watch.feed(bytes(4096))
    watch.feed(b"\nKernel panic - not syncing: late\n")
    assert len(watch.tail) <= 2 * TAIL
    assert watch.text().endswith("late")
