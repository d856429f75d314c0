# SPDX-License-Identifier: GPL-2.0-only
"""pvpanic: the guest's kernel tells that it panicked (QEMU docs/specs/pvpanic)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


PANICKED = 1 << 0
CRASH_LOADED = 1 << 1  # a crash kernel takes over: the guest goes on
EVENTS = PANICKED | CRASH_LOADED


class PvPanic:
    """`on_event` gets the event bits that the guest wrote, of those that exist. There is no state."""

    def __init__(self, on_event: Callable[[int], object]) -> None:
        self._on_event = on_event

    def read(self, offset: int, size: int) -> int:
        return EVENTS

    def write(self, offset: int, size: int, value: int) -> None:
        if value & EVENTS:
            self._on_event(value & EVENTS)

    def save(self) -> tuple[()]:
        """Nothing to keep."""
        return ()

    def restore(self, state: tuple[()]) -> None:
        """Nothing to take over."""
