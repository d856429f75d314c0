# SPDX-License-Identifier: GPL-2.0-only
"""isa-debug-exit: a guest ends the run by writing its status to a port (QEMU's device of that name)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class DebugExit:
    """`on_exit` gets the value that the guest wrote. There is no state."""

    def __init__(self, on_exit: Callable[[int], object]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._on_exit(value)

    def save(self) -> tuple[()]:
        """Nothing to keep."""
        return ()

    def restore(self, state: tuple[()]) -> None:
        """Nothing to take over."""
