# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts: lines of the in-kernel IOAPIC and 8259s, and message-signalled vectors through irqfd.

Lock order: `IrqController._lock` is a leaf; it protects the routing table and the allocation of GSIs.
"""

from __future__ import annotations

from unikvm.errors import UnikvmError
from unikvm.lean import Lock
from unikvm.sys.eventfd import EventFd
from unikvm.sys.kvm import Vm
from unikvm.uapi import kvm as uapi

IOAPIC_PINS = 24  # KVM_IOAPIC_NUM_PINS
FIRST_MSI_GSI = IOAPIC_PINS
MAX_MSI_VECTORS = 1024
_REMAPPABLE = 1 << 4  # an MSI address in the format of interrupt remapping, of which there is none here
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
        with self._lock:
            entries = _pc_routes()
            for vector in self._vectors.values():
                if vector.message != (0, 0):
                    entries.append(_msi_route(vector.gsi, *vector.message))
            self.vm.set_gsi_routing(entries)


def _pc_routes() -> list[uapi.kvm_irq_routing_entry]:
    routes = []
    for gsi in range(IOAPIC_PINS):
        if gsi < 16 and gsi != 2:  # line 2 of the master 8259 is the cascade
            chip = uapi.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else uapi.KVM_IRQCHIP_PIC_SLAVE
            routes.append(_chip_route(gsi, chip, gsi % 8))
        if gsi != TIMER_IOAPIC_PIN:
            pin = TIMER_IOAPIC_PIN if gsi == 0 else gsi
            routes.append(_chip_route(gsi, uapi.KVM_IRQCHIP_IOAPIC, pin))
    return routes


def _chip_route(gsi: int, chip: int, pin: int) -> uapi.kvm_irq_routing_entry:
    entry = uapi.kvm_irq_routing_entry(gsi=gsi, type=uapi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip = chip
    entry.u.irqchip.pin = pin
    return entry


def _msi_route(gsi: int, address: int, data: int) -> uapi.kvm_irq_routing_entry:
    entry = uapi.kvm_irq_routing_entry(gsi=gsi, type=uapi.KVM_IRQ_ROUTING_MSI)
    # Linux's extended destination (KVM_FEATURE_MSI_EXT_DEST_ID): bits 8-14 of the ID are in bits 5-11 of the address.
    # KVM takes them from the upper word, the lowest byte of which it wants to be 0.
    extended = 0 if address & _REMAPPABLE else address >> 5 & 0x7F
    entry.u.msi.address_lo = address & 0xFFFF_FFFF & ~(0x7F << 5 if extended else 0)
    entry.u.msi.address_hi = address >> 32 & 0xFFFF_FF00 or extended << 8
    entry.u.msi.data = data
    return entry
