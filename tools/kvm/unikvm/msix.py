# SPDX-License-Identifier: GPL-2.0-only
"""MSI-X of a PCI function (PCI 3.0 §6.8.2): the capability, the table of messages and the pending bits.

A vector that is masked is detached from KVM's irqfd; what is signalled meanwhile waits in its eventfd, which
so is the pending bit, and arrives when the guest unmasks. Triggering therefore takes no lock, from any
thread. `Msix._lock` protects the table; it is taken after a device's lock and before the interrupt
controller's.
"""

from __future__ import annotations

from unikvm.errors import UnikvmError
from unikvm.lean import Lock
from unikvm.pci import PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Vector(Protocol):
        """What MSI-X needs of `irq.MsiVector`."""

        fd: int

        def trigger(self) -> None: ...

        def update(self, address: int, data: int) -> None: ...

        def mask(self, masked: bool) -> None: ...

        @property
        def pending(self) -> bool: ...

        def close(self) -> None: ...


PCI_CAP_ID_MSIX = 0x11
MSIX_ENABLE = 0x8000
MSIX_FUNCTION_MASK = 0x4000
ENTRY_SIZE = 16  # message address (8 bytes), message data, vector control
_ENTRY_MASKED = 1
MAX_VECTORS = 128  # table and pending bits fit a page each, with room


def _nobody() -> None:
    """Stands for a listener that is not there."""


class Msix:
    """The MSI-X capability of `function`, with `count` vectors. `allocate` makes one (`IrqController.msi`).

    The table is a bus device: put `read` and `write` where the capability says the table is, `read_pending`
    likewise.
    """

    def __init__(
        self,
        function: PciFunction,
        count: int,
        allocate: Callable[[], Vector],
        *,
        bar: int,
        table_offset: int,
        pending_offset: int,
    ) -> None:
        if not 0 < count <= MAX_VECTORS:
            raise UnikvmError(f"{count} MSI-X vectors are not possible")
        self.count = count
        self.enabled = False
        self.switched: Callable[[], None] = _nobody  # called when `enabled` has changed
        self._function = function
        self._allocate = allocate
        self._vectors: list[Vector | None] = [None] * count
        self._live = [False] * count
        self._table = bytearray(b"\0" * 12 + b"\1\0\0\0") * count  # every entry masked (§6.8.2.9)
        self._closed = False
        self._lock = Lock()
        body = b"".join(
            (
                (count - 1).to_bytes(2, "little"),
                (table_offset | bar).to_bytes(4, "little"),
                (pending_offset | bar).to_bytes(4, "little"),
            )
        )
        writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_bytes(2, "little")
        self.capability = function.add_capability(PCI_CAP_ID_MSIX, body, writable)
        function.watch(self.capability + 2, 2, self.control_written)

    def trigger(self, index: int) -> None:
        """Send message `index`, or keep it pending while it is masked. From any thread; not after `close`."""
        vector = self._vectors[index] or self._vector(index)
        vector.trigger()

    def vector(self, index: int) -> Vector:
        """The vector behind table entry `index`: for data planes that signal its eventfd themselves."""
        return self._vectors[index] or self._vector(index)

    def control_written(self) -> None:
        """The guest wrote the capability: take over enable and function mask."""
        with self._lock:
            if self._closed:
                return
            control = self._function.get(self.capability + 2, 2)
            before = self.enabled
            self.enabled = bool(control & MSIX_ENABLE)
            for index in range(self.count):
                self._refresh(index)
        if self.enabled != before:
            self.switched()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Table writes are of 4 or 8 bytes, aligned (§6.8.2); others are dropped."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        with self._lock:
            if self._closed:
                return
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            self._refresh(offset // ENTRY_SIZE)

    def read_pending(self, offset: int, size: int) -> int:
        """The pending bit array."""
        value = 0
        first = 8 * offset
        with self._lock:
            for index in range(first, min(first + 8 * size, self.count)):
                vector = self._vectors[index]
                if vector is not None and vector.pending:
                    value |= 1 << (index - first)
        return value

    def save(self) -> bytes:
        """The table, for a snapshot.

        The capability is in configuration space. Pending bits are followed by a kick.
        """
        return bytes(self._table)

    def restore(self, table: bytes) -> None:
        """Take over `table`, with configuration space restored already."""
        with self._lock:
            self._table[:] = table
        self.control_written()

    def close(self) -> None:
        """Give the vectors back."""
        with self._lock:
            self._closed = True  # an access that began before comes to nothing
            for vector in self._vectors:
                if vector is not None:
                    vector.close()
            self._vectors = [None] * self.count
            self._live = [False] * self.count

    def _vector(self, index: int) -> Vector:
        with self._lock:
            return self._make(index)

    def _make(self, index: int) -> Vector:
        vector = self._vectors[index]
        if vector is None:
            vector = self._vectors[index] = self._allocate()
        return vector

    def _refresh(self, index: int) -> None:
        """Bring vector `index` in line with its entry. Messages are handed over at the unmasking, once."""
        start = index * ENTRY_SIZE
        entry = self._table[start : start + ENTRY_SIZE]
        control = self._function.get(self.capability + 2, 2)
        live = self.enabled and not control & MSIX_FUNCTION_MASK and not entry[12] & _ENTRY_MASKED
        if not live and not self._live[index]:
            return
        vector = self._make(index)
        try:
            if live:
                vector.update(int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little"))
            if live != self._live[index]:
                vector.mask(not live)
                self._live[index] = live
        except UnikvmError:
            pass  # KVM refuses the guest's message: the vector stays as it was, the guest gets no interrupt
