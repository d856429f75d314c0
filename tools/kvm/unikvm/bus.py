# SPDX-License-Identifier: GPL-2.0-only
"""An address space of devices: port I/O or memory-mapped I/O.

Ranges are [start, end) and never overlap. Unclaimed reads give all ones and unclaimed writes are dropped, as on a PC.
"""

from __future__ import annotations

from unikvm.errors import UnikvmError
from unikvm.lean import Lock, bisect_right

TYPE_CHECKING = False  # importing `typing` would cost a tenth of a payload's whole run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Resolved = tuple[Callable[..., Any], int, int, int, int]

    class BusDevice(Protocol):
        """What a device offers to a bus. `offset` counts from the start of its range, `size` is 1, 2, 4 or 8 bytes."""

        def read(self, offset: int, size: int) -> int: ...

        def write(self, offset: int, size: int, value: int) -> None: ...


class Bus:
    """Maps addresses to devices. Look-ups are lock-free, whoever adds and removes meanwhile: the table is replaced as a
    whole, never changed in place.

    Lock order: `_lock`, which orders those who add and remove, is a leaf.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # What the vCPUs found for exits that come again, in their own terms. Another dictionary after each change, so
        # what is put into the one that was there before the look-up is never older than the table.
        self.resolved: dict[int, Resolved] = {}
        self._lock = Lock()
        # Both lists in one: starts of an older table than the ranges would lead to another device.
        self._table: tuple[list[int], list[tuple[int, int, BusDevice]]] = ([], [])

    def add(self, start: int, length: int, device: BusDevice) -> None:
        """Claim [start, start + length) for `device`. Raises UnikvmError when any of it is taken."""
        if length <= 0 or start < 0:
            raise UnikvmError(f"{self.name}: bad range {start:#x}+{length:#x}")
        end = start + length
        with self._lock:
            for other_start, other_end, other in self._table[1]:
                if start < other_end and other_start < end:
                    raise UnikvmError(
                        f"{self.name}: {type(device).__name__} at [{start:#x}, {end:#x}) overlaps "
                        f"{type(other).__name__} at [{other_start:#x}, {other_end:#x})"
                    )
            self._publish(sorted([*self._table[1], (start, end, device)], key=lambda entry: entry[0]))

    def remove(self, start: int) -> None:
        """Release the range that begins at `start`; KeyError when there is none."""
        with self._lock:
            ranges = [entry for entry in self._table[1] if entry[0] != start]
            if len(ranges) == len(self._table[1]):
                raise KeyError(start)
            self._publish(ranges)

    def _publish(self, ranges: list[tuple[int, int, BusDevice]]) -> None:
        self._table = ([entry[0] for entry in ranges], ranges)
        self.resolved = {}

    def find(self, address: int) -> tuple[int, int, BusDevice] | None:
        """The (start, end, device) that claims `address`, or None."""
        starts, ranges = self._table
        index = bisect_right(starts, address) - 1
        if index >= 0 and address < ranges[index][1]:
            return ranges[index]
        return None

    def ranges(self) -> tuple[tuple[int, int, BusDevice], ...]:
        """Every claimed (start, end, device), by address."""
        return tuple(self._table[1])

    def read(self, address: int, size: int) -> int:
        """Read `size` bytes at `address`, little-endian."""
        entry = self.find(address)
        if entry is None:
            return (1 << (8 * size)) - 1
        return entry[2].read(address - entry[0], size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes at `address`, little-endian."""
        entry = self.find(address)
        if entry is not None:
            entry[2].write(address - entry[0], size, value)
