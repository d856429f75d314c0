# SPDX-License-Identifier: GPL-2.0-only
"""The chipset that PC firmware knows: Intel's 82441FX host bridge and the functions of its PIIX that matter to it.

Firmware asks who the host bridge is, and then uses what it believes to be there. So only what it uses is there, and
what is fixed in this machine reads as if firmware had set it already:

- The BIOS area [0xc0000, 0x100000) is RAM that nothing protects, with the end of the firmware's image in it; the
  registers that would switch between ROM and RAM start as after a reset, and only keep their values.
- There is no system management mode: the PIIX's power management says that it was set up, which is how QEMU says it.
- The ACPI ports are where the machine has them; the base address is fixed.

IDs and registers: Intel 82441FX (290549), 82371SB/AB (290562). SeaBIOS and OVMF look for QEMU's subsystem IDs.
"""

from __future__ import annotations

from unikvm.pci import PciFunction

INTEL = 0x8086
I440FX, PIIX3_ISA, PIIX4_PM = 0x1237, 0x7000, 0x7113
_QEMU = (0x1AF4, 0x1100)  # subsystem: "a virtual machine with fw_cfg"
_CLASS_HOST_BRIDGE, _CLASS_ISA_BRIDGE, _CLASS_OTHER_BRIDGE = 0x060000, 0x060100, 0x068000

_PAM = 0x59  # seven registers: who answers in the BIOS area
_PAM_COUNT = 7
_SMRAM = 0x72
_SMRAM_DEFAULT = 0x02
_PIRQ_ROUTES = 0x60
_PIRQ_NONE = 0x80
_PM_BASE = 0x40
_PM_BASE_IS_IO = 1
_PM_DEVICE_ACTIVITY_B = 0x58
_APMC_ENABLED = 1 << 25  # "SMM is set up": firmware then leaves it alone
_PM_MISC = 0x80
_PM_PORTS_ENABLED = 1


def host_bridge() -> PciFunction:
    """00:00.0."""
    function = PciFunction(INTEL, I440FX, _CLASS_HOST_BRIDGE, revision=2, subsystem=_QEMU)
    function.set_writable(_PAM, _PAM_COUNT, (1 << 8 * _PAM_COUNT) - 1)
    function.set(_SMRAM, 1, _SMRAM_DEFAULT)
    return function


def isa_bridge() -> PciFunction:
    """00:01.0: under it firmware looks for the serial port and the keyboard controller."""
    function = PciFunction(INTEL, PIIX3_ISA, _CLASS_ISA_BRIDGE, subsystem=_QEMU)
    function.set(_PIRQ_ROUTES, 4, int.from_bytes(bytes((_PIRQ_NONE,)) * 4, "little"))
    function.set_writable(_PIRQ_ROUTES, 4, 0xFFFF_FFFF)  # there is no INTx: nothing follows from them
    return function


def power_management(base: int) -> PciFunction:
    """00:01.3: where the ACPI ports are, from `base` on."""
    function = PciFunction(INTEL, PIIX4_PM, _CLASS_OTHER_BRIDGE, revision=3, subsystem=_QEMU)
    function.set(_PM_BASE, 4, base | _PM_BASE_IS_IO)
    function.set(_PM_DEVICE_ACTIVITY_B, 4, _APMC_ENABLED)
    function.set(_PM_MISC, 1, _PM_PORTS_ENABLED)
    return function
