# SPDX-License-Identifier: GPL-2.0-only
"""fw_cfg: what the machine tells firmware, as numbered items and named files (QEMU docs/specs/fw_cfg).

Read byte after byte at a port, or at once by DMA. Nothing in it can be written: a guest that tries gets the error that
the specification has for that.
"""

from __future__ import annotations

from struct import Struct, pack

from unikvm.errors import GuestFault
from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unikvm.memory import GuestMemory

SIGNATURE, ID, RAM_SIZE, NB_CPUS, MAX_CPUS = 0x00, 0x01, 0x03, 0x05, 0x0F
KERNEL_SIZE, KERNEL_DATA = 0x08, 0x11
INITRD_SIZE, INITRD_DATA = 0x0B, 0x12
CMDLINE_SIZE, CMDLINE_DATA = 0x14, 0x15
SETUP_SIZE, SETUP_DATA = 0x17, 0x18
FILE_DIRECTORY, FIRST_FILE = 0x19, 0x20
_MAX_FILES = 0x10  # in every version of the interface; later ones may have more
_NAME_SIZE = 56  # with its zero

_HAS_PORTS, _HAS_DMA = 1 << 0, 1 << 1
SIZE = 12  # of the ports: selector 0, data 1, DMA address 4 (high half) and 8 (low half, starts the transfer)
_SELECTOR, _DATA, _DMA = 0, 1, 4
_DMA_SIGNATURE = b"QEMU CFG"
_ACCESS = Struct(">IIQ")  # control, length, address
_ERROR, _READ, _SKIP, _SELECT, _WRITE = (1 << bit for bit in range(5))
_CHUNK = 1 << 20


def numbers(*, memory: int, cpus: int, apic_ids: int) -> dict[int, bytes]:
    """The items that every guest finds. `apic_ids`: one more than the highest of a CPU that it has or may get, which is
    what QEMU's MAX_CPUS is."""
    return {
        RAM_SIZE: memory.to_bytes(8, "little"),
        NB_CPUS: cpus.to_bytes(2, "little"),
        MAX_CPUS: apic_ids.to_bytes(2, "little"),
    }


class FwCfgState(State):
    key: int = 0
    position: int = 0
    dma_address: int = 0


class FwCfg:
    """Map it at SIZE ports, or at the first two where there is no `memory` for DMA."""

    def __init__(
        self, items: Mapping[int, bytes], files: Mapping[str, bytes] | None = None, memory: GuestMemory | None = None
    ) -> None:
        features = _HAS_PORTS | (_HAS_DMA if memory is not None else 0)
        self._items = {**items, SIGNATURE: b"QEMU", ID: features.to_bytes(4, "little")}
        self._memory = memory
        self._state = FwCfgState()
        if files is not None:
            self._add_files(files)

    def _add_files(self, files: Mapping[str, bytes]) -> None:
        """Number the files, and write the directory: big-endian, unlike everything else."""
        if len(files) > _MAX_FILES or any(len(name) >= _NAME_SIZE for name in files):
            raise ValueError("too many files, or a name that is too long")
        directory = pack(">I", len(files))
        for key, (name, content) in enumerate(sorted(files.items()), FIRST_FILE):
            self._items[key] = content
            directory += pack(f">IHH{_NAME_SIZE}s", len(content), key, 0, name.encode("ascii"))
        self._items[FILE_DIRECTORY] = directory

    def read(self, offset: int, size: int) -> int:
        if offset == _SELECTOR:
            return self._state.key & (1 << 8 * size) - 1
        if offset >= _DMA:
            # As big-endian as the address that is written there.
            return int.from_bytes(_DMA_SIGNATURE[offset - _DMA : offset - _DMA + size], "little")
        item = self._items.get(self._state.key, b"")
        position = self._state.position
        self._state.position = position + 1
        return item[position] if position < len(item) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == _SELECTOR:
            self._select(value & 0xFFFF)
        elif self._memory is None or offset < _DMA or offset % 4 or size < 4:
            return
        elif size == 8:
            self._transfer(self._memory, _swapped(value, 8))
        elif offset == _DMA:
            self._state.dma_address = _swapped(value, 4) << 32
        else:
            self._transfer(self._memory, self._state.dma_address | _swapped(value, 4))

    def _select(self, key: int) -> None:
        self._state.key, self._state.position = key, 0

    def _transfer(self, memory: GuestMemory, address: int) -> None:
        """Do what the structure at `address` says, and leave the result in its first word."""
        self._state.dma_address = 0
        try:
            access = memory.view(address, _ACCESS.size)
        except GuestFault:
            return  # there is no place for an answer either
        control, length, target = _ACCESS.unpack(access)
        if control & _SELECT:
            self._select(control >> 16)
        result = 0
        if control & _READ:
            try:
                self._copy(memory.view(target, length))
            except GuestFault:
                result = _ERROR
        elif control & _WRITE:
            result = _ERROR
        elif control & _SKIP:
            self._state.position += length
        access[:4] = result.to_bytes(4, "big")

    def _copy(self, target: memoryview) -> None:
        """Fill `target` from where the item is read now; what is beyond its end is zero."""
        item = memoryview(self._items.get(self._state.key, b""))[self._state.position :][: len(target)]
        target[: len(item)] = item
        for at in range(len(item), len(target), _CHUNK):
            rest = target[at : at + _CHUNK]
            rest[:] = bytes(len(rest))
        self._state.position += len(target)

    def save(self) -> FwCfgState:
        return self._state.replace()

    def restore(self, state: FwCfgState) -> None:
        self._state = state.replace()


def _swapped(value: int, size: int) -> int:
    return int.from_bytes((value & (1 << 8 * size) - 1).to_bytes(size, "little"), "big")
