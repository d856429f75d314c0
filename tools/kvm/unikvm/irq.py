# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts: lines of the in-kernel IOAPIC and 8259s, and message-signalled vectors through irqfd.

Lock order: `IrqController._lock` is a leaf; it protects the routing table and the allocation of GSIs.
"""

from __future__ import annotations

from unikvm.errors import UnikvmError
from unikvm.lean import Lock
from unikvm.sys.eventfd import EventFd
from unikvm.sys.kvm import Vm

IOAPIC_PINS = 24  # KVM_IOAPIC_NUM_PINS
FIRST_MSI_GSI = IOAPIC_PINS
MAX_MSI_VECTORS = 1024
TIMER_IOAPIC_PIN = 2  # the MADT's interrupt source override: ISA IRQ 0 arrives on pin 2


class IrqLine:
    """One interrupt line (GSI below 24)."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi

    def set(self, level: bool) -> None:
        """Drive the line."""
        self._vm.irq_line(self.gsi, level)

    def pulse(self) -> None:
        """Raise and lower it: one edge."""
        self._vm.irq_line(self.gsi, True)
        self._vm.irq_line(self.gsi, False)


class MsiVector:
    """One MSI-X vector. Writing 8 bytes to `fd` injects it without an exit, from any thread."""

    def __init__(self, controller: IrqController, gsi: int) -> None:
        self._controller = controller
        self._event = EventFd()
        self._attached = False
        self.fd = self._event.fd
        self.gsi = gsi
        self.message = (0, 0)

    def trigger(self) -> None:
        """Inject now; while masked it stays pending in the eventfd and arrives at the unmasking."""
        self._event.signal()

    def update(self, address: int, data: int) -> None:
        """Set the message (address, data) that the guest wrote into the vector's table entry."""
        if (address, data) != self.message:
            self.message = (address, data)
            self._controller.commit()

    def mask(self, masked: bool) -> None:
        """Detach from (or attach to) KVM. KVM takes what is pending in the eventfd when it is attached."""
        if self._attached == masked:
            self._controller.vm.irqfd(self.fd, self.gsi, deassign=masked)
            self._attached = not masked

    @property
    def pending(self) -> bool:
        """Whether a masked vector was triggered (the PBA bit)."""
        if self._attached:
            return False
        count = self._event.drain()
        if count:
            self._event.signal()  # looked at, not taken
        return count > 0

    def close(self) -> None:
        self.mask(True)
        self._controller.release(self)
        self._event.close()


class IrqController:
    """Hands out lines and vectors of one VM, and keeps KVM's routing table."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._lock = Lock()
        self._vectors: dict[int, MsiVector] = {}

    def line(self, gsi: int) -> IrqLine:
        if not 0 <= gsi < IOAPIC_PINS:
            raise UnikvmError(f"no interrupt line {gsi}")
        return IrqLine(self.vm, gsi)

    def msi(self) -> MsiVector:
        """Allocate a vector, masked and with no message yet."""
        with self._lock:
            for gsi in range(FIRST_MSI_GSI, FIRST_MSI_GSI + MAX_MSI_VECTORS):
                if gsi not in self._vectors:
                    vector = self._vectors[gsi] = MsiVector(self, gsi)
                    return vector
        raise UnikvmError(f"more than {MAX_MSI_VECTORS} MSI-X vectors")

    def release(self, vector: MsiVector) -> None:
        with self._lock:
            del self._vectors[vector.gsi]

    def commit(self) -> None:
        """Give KVM the routing table: the PC's fixed lines and every vector that has a message."""
        from unikvm import routing

        with self._lock:
            entries = routing.pc_routes(IOAPIC_PINS, TIMER_IOAPIC_PIN)
            for vector in self._vectors.values():
                if vector.message != (0, 0):
                    entries.append(routing.msi_route(vector.gsi, *vector.message))
            self.vm.set_gsi_routing(entries)
