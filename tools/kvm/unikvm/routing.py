# SPDX-License-Identifier: GPL-2.0-only
"""Entries of KVM's interrupt routing table. A machine without message-signalled interrupts has KVM's own."""

from __future__ import annotations

from unikvm.uapi import kvm_irq as uapi

_REMAPPABLE = 1 << 4  # an MSI address in the format of interrupt remapping, of which there is none here


def pc_routes(pins: int, timer: int) -> list[uapi.kvm_irq_routing_entry]:
    """The lines of the two 8259s and of the IOAPIC, which has so many `pins`; ISA IRQ 0 arrives on `timer`."""
    routes = []
    for gsi in range(pins):
        if gsi < 16 and gsi != 2:  # line 2 of the master 8259 is the cascade
            chip = uapi.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else uapi.KVM_IRQCHIP_PIC_SLAVE
            routes.append(_chip_route(gsi, chip, gsi % 8))
        if gsi != timer:
            pin = timer if gsi == 0 else gsi
            routes.append(_chip_route(gsi, uapi.KVM_IRQCHIP_IOAPIC, pin))
    return routes


def _chip_route(gsi: int, chip: int, pin: int) -> uapi.kvm_irq_routing_entry:
    entry = uapi.kvm_irq_routing_entry(gsi=gsi, type=uapi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip = chip
    entry.u.irqchip.pin = pin
    return entry


def msi_route(gsi: int, address: int, data: int) -> uapi.kvm_irq_routing_entry:
    """The message (`address`, `data`) for `gsi`."""
    entry = uapi.kvm_irq_routing_entry(gsi=gsi, type=uapi.KVM_IRQ_ROUTING_MSI)
    # Linux's extended destination (KVM_FEATURE_MSI_EXT_DEST_ID): bits 8-14 of the ID are in bits 5-11 of the address.
    # KVM takes them from the upper word, the lowest byte of which it wants to be 0.
    extended = 0 if address & _REMAPPABLE else address >> 5 & 0x7F
    entry.u.msi.address_lo = address & 0xFFFF_FFFF & ~(0x7F << 5 if extended else 0)
    entry.u.msi.address_hi = address >> 32 & 0xFFFF_FF00 or extended << 8
    entry.u.msi.data = data
    return entry
