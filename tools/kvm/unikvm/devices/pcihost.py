# SPDX-License-Identifier: GPL-2.0-only
"""The PCI host bridge: function 00:00.0, and two ways to configuration space (ports 0xcf8/0xcfc, and ECAM).

Linux reads through the ports until it has parsed the MCFG table, then through ECAM, which is one exit an
access instead of two.
"""

from __future__ import annotations

from unikvm.pci import PciBus, PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ENABLE = 1 << 31
_RESET_CONTROL = 1  # port 0xcf9, bytewise: the reset control register shares the address register's ports
_RESET_CPU = 0x04

# Linux trusts the ports only when it finds a host bridge; this one (Red Hat's) has no quirks in any guest.
_VENDOR = 0x1B36
_DEVICE = 0x0008
_CLASS_HOST_BRIDGE = 0x060000


class HostBridge(PciFunction):
    """00:00.0."""

    def __init__(self) -> None:
        super().__init__(_VENDOR, _DEVICE, _CLASS_HOST_BRIDGE)


class ConfigPorts:
    """Configuration mechanism 1, at 8 ports from 0xcf8.

    `reset` is called when the guest resets through port 0xcf9.
    """

    def __init__(self, bus: PciBus, reset: Callable[[], None] | None = None) -> None:
        self._bus = bus
        self._reset = reset
        self._address = 0
        self._reset_control = 0

    def read(self, offset: int, size: int) -> int:
        if offset >= 4:
            if not self._address & _ENABLE or offset + size > 8:
                return (1 << 8 * size) - 1
            return self._bus.config_read(*self._target(offset), size)
        if offset == 0 and size == 4:
            return self._address
        if offset == _RESET_CONTROL and size == 1:
            return self._reset_control
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4:
            if self._address & _ENABLE and offset + size <= 8:
                self._bus.config_write(*self._target(offset), size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FF_FFFC
        elif offset == _RESET_CONTROL and size == 1:
            self._reset_control = value & ~_RESET_CPU & 0xFF
            if value & _RESET_CPU and self._reset is not None:
                self._reset()

    def _target(self, offset: int) -> tuple[int, int, int]:
        address = self._address
        return address >> 16 & 0xFF, address >> 8 & 0xFF, address & 0xFC | offset & 3

    def save(self) -> tuple[int, int]:
        """The state for a snapshot: the address register and the reset control register."""
        return self._address, self._reset_control

    def restore(self, state: tuple[int, int]) -> None:
        self._address, self._reset_control = state


class Ecam:
    """Memory-mapped configuration space: bus, device, function and register are in the address."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, size: int) -> int:
        if offset & 0xFFF > 0x1000 - size:
            return (1 << 8 * size) - 1
        return self._bus.config_read(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset & 0xFFF <= 0x1000 - size:
            self._bus.config_write(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size, value)
