# SPDX-License-Identifier: GPL-2.0-only
"""fw_cfg, as far as kvm-unit-tests read it: numbers behind a selector port (QEMU docs/specs/fw_cfg)."""

from __future__ import annotations

from unikvm.record import State

SIGNATURE, ID, RAM_SIZE, NB_CPUS, MAX_CPUS = 0x00, 0x01, 0x03, 0x05, 0x0F


class FwCfgState(State):
    key: int = 0
    position: int = 0


class FwCfg:
    """Two ports: the selector (16 bits), and the data, byte after byte; past the end it reads 0."""

    def __init__(self, *, memory: int, cpus: int) -> None:
        self._items = {
            SIGNATURE: b"QEMU",
            ID: (1).to_bytes(4, "little"),  # the traditional interface, no DMA
            RAM_SIZE: memory.to_bytes(8, "little"),
            NB_CPUS: cpus.to_bytes(2, "little"),
            MAX_CPUS: cpus.to_bytes(2, "little"),
        }
        self._state = FwCfgState()

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return self._state.key & (1 << 8 * size) - 1
        item = self._items.get(self._state.key, b"")
        position = self._state.position
        self._state.position = position + 1
        return item[position] if position < len(item) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._state = FwCfgState(value & 0xFFFF, 0)

    def save(self) -> FwCfgState:
        return self._state.replace()

    def restore(self, state: FwCfgState) -> None:
        self._state = state.replace()
