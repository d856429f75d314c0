# SPDX-License-Identifier: GPL-2.0-only
"""What the DSDT says of processors and PCI slots that come and go at run time (ACPI 6.5 §5.6.9, §6.3, §8.4).

A generic event device has one interrupt line; its method asks the registers (`devices.plug`) what has happened and
notifies the objects concerned: 0 is a bus check, 1 a device check, 3 an eject request (§5.6.6). The guest answers with
_EJ0.
"""

from __future__ import annotations

from struct import pack

from unikvm.arch.x86_64 import aml, layout
from unikvm.arch.x86_64.topology import XAPIC_IDS, Topology

_BUS_CHECK, _DEVICE_CHECK, _EJECT_REQUEST = aml.integer(0), aml.integer(1), aml.integer(3)
_PRESENT = aml.integer(0xF)  # _STA (§6.3.7): present, enabled, shown, working
_NEXT_EVENT, _OST_EVENT, _OST_STATUS = aml.integer(0), aml.integer(1), aml.integer(2)
_ONE = aml.integer(1)
_LOCK, _UNLOCK = aml.acquire("CPLK"), aml.release("CPLK")


def lapic_entry(uid: int, apic_id: int, flags: int) -> bytes:
    """A processor's entry in the MADT, and what its _MAT says (§5.2.12.2, §5.2.12.12)."""
    if apic_id < XAPIC_IDS:
        return pack("<BBBBI", 0, 8, uid, apic_id, flags)
    return pack("<BBHIII", 9, 16, 0, apic_id, flags, uid)


def event_device(*, cpus: bool, slots: bool) -> bytes:
    """ACPI0013: its interrupt is level-triggered, and stays until everything has been asked for."""
    asks = [aml.call("^^CPUS.CSCN")] if cpus else []
    asks += [aml.call("^^PCI0.PCNT")] if slots else []
    return aml.device(
        "GED",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.interrupt(layout.PLUG_IRQ, edge=False))),
        aml.method("_EVT", 1, *asks, serialized=True),
    )


# Processors


def processors(topology: Topology) -> bytes:
    """The container of the processors, their registers, and the methods that use them."""
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        aml.port_region("CPRG", layout.CPU_PLUG, layout.CPU_PLUG_SIZE),
        aml.field(
            "CPRG", aml.BYTE_ACCESS, ("", 32), ("CPEN", 1), ("CINS", 1), ("CRMV", 1), ("CEJE", 1), ("", 4), ("CCMD", 8)
        ),
        aml.field("CPRG", aml.DWORD_ACCESS, ("CSEL", 32), ("", 32), ("CDAT", 32)),
        aml.mutex("CPLK"),
        _processor_methods(),
        _processor_scan(topology.cpus),
        *(_processor(cpu, topology.apic_id(cpu)) for cpu in range(topology.cpus)),
    )


def _processor_methods() -> bytes:
    """Status, eject and the guest's word, of the processor whose number is the first argument."""
    selected = aml.store(aml.argument(0), aml.name_string("CSEL"))
    data, command, status = aml.name_string("CDAT"), aml.name_string("CCMD"), aml.local(0)
    state = (
        aml.store(aml.integer(0), status),
        aml.when(aml.name_string("CPEN"), aml.store(_PRESENT, status)),
    )
    word = (
        aml.store(_OST_EVENT, command),
        aml.store(aml.argument(1), data),
        aml.store(_OST_STATUS, command),
        aml.store(aml.argument(2), data),
    )
    eject = aml.store(_ONE, aml.name_string("CEJE"))
    return b"".join(
        (
            aml.method("CSTA", 1, _LOCK, selected, *state, _UNLOCK, aml.returns(status), serialized=True),
            aml.method("CEJ0", 1, _LOCK, selected, eject, _UNLOCK, serialized=True),
            aml.method("COST", 3, _LOCK, selected, *word, _UNLOCK, serialized=True),
        )
    )


def _processor_scan(cpus: int) -> bytes:
    """Tell the guest of every processor that has something to tell."""
    number, kind, again = aml.argument(0), aml.argument(1), aml.local(0)
    tell = [aml.when(aml.equal(number, aml.integer(cpu)), aml.notify(_cpu(cpu), kind)) for cpu in range(cpus)]

    def event(flag: str, what: bytes) -> bytes:
        told = aml.call("CTFY", aml.name_string("CDAT"), what)
        return aml.when(aml.name_string(flag), told, aml.store(_ONE, aml.name_string(flag)), aml.store(_ONE, again))

    each = (
        aml.store(aml.integer(0), again),
        aml.store(_NEXT_EVENT, aml.name_string("CCMD")),
        event("CINS", _DEVICE_CHECK),
        aml.otherwise(event("CRMV", _EJECT_REQUEST)),
    )
    loop = aml.loop_while(again, *each)
    return aml.method("CTFY", 2, *tell) + aml.method(
        "CSCN", 0, _LOCK, aml.store(_ONE, again), loop, _UNLOCK, serialized=True
    )


def _cpu(index: int) -> str:
    return f"C{index:03X}"


def _processor(index: int, apic_id: int) -> bytes:
    """ACPI0007 (§8.4). The first one is the guest's to the end."""
    number = aml.integer(index)
    report = aml.call("COST", number, aml.argument(0), aml.argument(1))
    eject = aml.method("_EJ0", 1, aml.call("CEJ0", number)) if index else b""
    return aml.device(
        _cpu(index),
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", number),
        aml.method("_STA", 0, aml.returns(aml.call("CSTA", number))),
        aml.name("_MAT", aml.buffer(lapic_entry(index, apic_id, 1))),
        eject,
        aml.method("_OST", 3, report),
    )


# PCI slots


def slots() -> bytes:
    """What the host bridge's device has beside its resources: a device for each slot, and their registers."""
    up, down = aml.local(0), aml.local(1)
    # In the host bridge's own place: look at the whole bus. Linux looks for what is missing only then.
    tell = [aml.when(aml.both(up, aml.integer(1)), aml.notify("PCI0", _BUS_CHECK))]
    for slot in range(1, layout.PCI_SLOTS):
        bit = aml.integer(1 << slot)
        tell.append(aml.when(aml.both(up, bit), aml.notify(_slot(slot), _DEVICE_CHECK)))
        tell.append(aml.when(aml.both(down, bit), aml.notify(_slot(slot), _EJECT_REQUEST)))
    return b"".join(
        (
            aml.port_region("PRRG", layout.PCI_PLUG, layout.PCI_PLUG_SIZE),
            aml.field("PRRG", aml.DWORD_ACCESS, ("PCIU", 32), ("PCID", 32), ("PCIE", 32)),
            aml.method(
                "PCNT",
                0,
                aml.store(aml.name_string("PCIU"), up),
                aml.store(aml.name_string("PCID"), down),
                *tell,
                serialized=True,
            ),
            *(_pci_slot(slot) for slot in range(1, layout.PCI_SLOTS)),
        )
    )


def _slot(number: int) -> str:
    return f"S{number:02X}"


def _pci_slot(number: int) -> bytes:
    """One device number of bus 0: _ADR (§6.1.1), _SUN and _EJ0, by which a guest knows that it can be changed."""
    return aml.device(
        _slot(number),
        aml.name("_ADR", aml.integer(number << 16)),
        aml.name("_SUN", aml.integer(number)),
        aml.method("_EJ0", 1, aml.store(aml.integer(1 << number), aml.name_string("PCIE"))),
    )
