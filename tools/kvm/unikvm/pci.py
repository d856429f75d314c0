# SPDX-License-Identifier: GPL-2.0-only
"""PCI functions and their bus: configuration space, BARs, capabilities (PCI Local Bus 3.0 §6).

Configuration accesses come on vCPU threads; functions come and go at run time on others. `PciBus.lock` protects which
functions there are, the configuration space of each and where its BARs are mapped; it is taken before any device's
lock.
"""

from __future__ import annotations

from unikvm.errors import UnikvmError
from unikvm.lean import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.bus import Bus, BusDevice

CONFIG_SIZE = 256  # conventional configuration space
EXTENDED_CONFIG_SIZE = 4096  # with PCI Express

# Configuration registers of a type 0 header (§6.1), and the bits used of them.
PCI_VENDOR_ID = 0x00
PCI_DEVICE_ID = 0x02
PCI_COMMAND = 0x04
PCI_STATUS = 0x06
PCI_REVISION = 0x08
PCI_CLASS = 0x09  # programming interface, sub-class, base class
PCI_HEADER_TYPE = 0x0E
PCI_BAR0 = 0x10
PCI_SUBSYSTEM_VENDOR_ID = 0x2C
PCI_SUBSYSTEM_ID = 0x2E
PCI_CAPABILITIES = 0x34
PCI_INTERRUPT_LINE = 0x3C
PCI_INTERRUPT_PIN = 0x3D

PCI_COMMAND_IO = 0x001
PCI_COMMAND_MEMORY = 0x002
PCI_COMMAND_MASTER = 0x004
PCI_COMMAND_WRITABLE = 0x547  # with parity, SERR# and INTx disable
PCI_STATUS_CAPABILITIES = 0x10
PCI_HEADER_MULTIFUNCTION = 0x80

BAR_COUNT = 6
BAR_IO = 0x1
BAR_MEM32 = 0x0
BAR_MEM64 = 0x4
BAR_PREFETCHABLE = 0x8
_FIRST_CAPABILITY = 0x40


def _no_ghosts(_bus: Bus, _address: int, _size: int) -> None:
    """For functions that are on no bus."""


def _unmoved(_address: int | None) -> None:
    """For BARs whose device does not care where it is."""


class Bar:
    """One base address register (§6.2.5): `size` bytes, a power of two, served by `device`.

    `moved` is called with the new address, or None, whenever the guest maps, moves or unmaps it.
    """

    __slots__ = ("address", "device", "flags", "index", "moved", "size")

    def __init__(
        self, index: int, size: int, device: BusDevice, flags: int, moved: Callable[[int | None], None]
    ) -> None:
        self.index = index
        self.size = size
        self.device = device
        self.flags = flags
        self.moved = moved
        self.address: int | None = None  # where it is on the bus now

    @property
    def offset(self) -> int:
        """Where the register is in configuration space."""
        return PCI_BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of configuration space."""
        return 8 if self.flags & BAR_MEM64 else 4


class PciFunction:
    """One function's configuration space. Devices add BARs and capabilities while they are being built."""

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        extended: bool = False,
    ) -> None:
        """`class_code`.

        24 bits, base class first. `subsystem`: vendor and ID. `extended`: 4 KiB instead of 256 bytes.
        """
        size = EXTENDED_CONFIG_SIZE if extended else CONFIG_SIZE
        self.config = bytearray(size)
        self._writable = bytearray(size)  # bits that the guest may change
        self._clears = bytearray(size)  # bits that the guest clears by writing one
        self.bars: list[Bar] = []
        self._next_capability = _FIRST_CAPABILITY
        self._last_link = PCI_CAPABILITIES
        self._mmio: Bus | None = None
        self._pio: Bus | None = None
        self._make_room: Callable[[Bus, int, int], None] = _no_ghosts
        self._watches: list[tuple[int, int, Callable[[], None]]] = []
        self.watch(PCI_COMMAND, 2, self.remap)
        self.watch(PCI_BAR0, 4 * BAR_COUNT, self.remap)
        self.set(PCI_VENDOR_ID, 2, vendor)
        self.set(PCI_DEVICE_ID, 2, device)
        self.set(PCI_REVISION, 1, revision)
        self.set(PCI_CLASS, 3, class_code)
        self.set(PCI_SUBSYSTEM_VENDOR_ID, 2, subsystem[0])
        self.set(PCI_SUBSYSTEM_ID, 2, subsystem[1])
        self.set_writable(PCI_COMMAND, 2, PCI_COMMAND_WRITABLE)
        self.set_writable(PCI_INTERRUPT_LINE, 1, 0xFF)

    def get(self, offset: int, size: int) -> int:
        """A configuration register as it is stored."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Store a configuration register, whatever the guest may write there."""
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def set_writable(self, offset: int, size: int, mask: int) -> None:
        """Let the guest change the bits of `mask`."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def set_clearing(self, offset: int, size: int, mask: int) -> None:
        """Let the guest clear the bits of `mask` by writing ones (status bits)."""
        self._clears[offset : offset + size] = mask.to_bytes(size, "little")

    def watch(self, offset: int, size: int, callback: Callable[[], None]) -> None:
        """Call `callback` after each write of the guest that touches [offset, offset + size)."""
        self._watches.append((offset, offset + size, callback))

    def add_bar(
        self,
        index: int,
        size: int,
        device: BusDevice,
        flags: int = BAR_MEM32,
        moved: Callable[[int | None], None] = _unmoved,
    ) -> Bar:
        """Add a BAR.

        One of 64 bits takes `index + 1` too. Raises UnikvmError for a bad size or a taken index.
        """
        bar = Bar(index, size, device, flags, moved)
        taken = {other.index + half for other in self.bars for half in range(other.width // 4)}
        wanted = {index + half for half in range(bar.width // 4)}
        minimum = 4 if flags & BAR_IO else 16
        if size & (size - 1) or size < minimum or wanted & taken or not wanted <= set(range(BAR_COUNT)):
            raise UnikvmError(f"BAR {index} of {size:#x} bytes is not possible")
        self.bars.append(bar)
        self.set(bar.offset, bar.width, flags)
        self.set_writable(bar.offset, bar.width, (1 << 8 * bar.width) - size)
        return bar

    def assign(self, bar: Bar, address: int) -> None:
        """Preset where `bar` is, as firmware does. It is mapped when the guest enables decoding."""
        if address % bar.size:
            raise UnikvmError(f"BAR {bar.index}: {address:#x} is not a multiple of its size")
        self.set(bar.offset, bar.width, address | bar.flags)

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (§6.7).

        `body` follows its ID and link, `writable` masks the body. Returns its offset.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_SIZE:
            raise UnikvmError("no room for another capability")
        self.config[self._last_link] = offset
        self.config[offset] = kind
        self.config[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self._last_link = offset + 1
        self._next_capability = (end + 3) & ~3
        self.set(PCI_STATUS, 2, self.get(PCI_STATUS, 2) | PCI_STATUS_CAPABILITIES)
        return offset

    def connect(self, mmio: Bus, pio: Bus | None, make_room: Callable[[Bus, int, int], None] = _no_ghosts) -> None:
        """Called by PciBus: where BARs get mapped, when `make_room(bus, address, size)` has returned."""
        self._mmio = mmio
        self._pio = pio
        self._make_room = make_room

    def disconnect(self) -> None:
        """Called by PciBus: the function is gone; whatever is written to it later maps nothing."""
        for bar in self.bars:
            self._place(bar, None)
        self._mmio = self._pio = None

    def config_read(self, offset: int, size: int) -> int:
        """The guest reads configuration space; what the function has not reads as zero."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The guest writes configuration space."""
        config = self.config
        for position in range(offset, min(offset + size, len(config))):
            byte = value >> 8 * (position - offset) & 0xFF
            mask = self._writable[position]
            config[position] = (config[position] & ~mask | byte & mask) & ~(byte & self._clears[position])
        for start, end, callback in self._watches:
            if offset < end and offset + size > start:
                callback()

    def save_config(self) -> bytes:
        """Configuration space, for a snapshot."""
        return bytes(self.config)

    def restore_config(self, config: bytes) -> None:
        """Take over configuration space, and map the BARs where it says."""
        self.config[:] = config
        self.remap()

    def remap(self) -> None:
        """Bring the buses in line with the BARs and the command register."""
        command = self.get(PCI_COMMAND, 2)
        for bar in self.bars:
            self._place(bar, self._wanted(bar, command))

    def _wanted(self, bar: Bar, command: int) -> int | None:
        if not command & (PCI_COMMAND_IO if bar.flags & BAR_IO else PCI_COMMAND_MEMORY):
            return None
        address = self.get(bar.offset, bar.width) & -bar.size
        # An address of zero or at the very top is a BAR that is not assigned, or one that is being sized.
        top = 1 << (16 if bar.flags & BAR_IO else 8 * bar.width)
        return address if 0 < address < top - bar.size else None

    def _place(self, bar: Bar, address: int | None) -> None:
        bus = self._pio if bar.flags & BAR_IO else self._mmio
        if address == bar.address or bus is None:
            return
        if bar.address is not None:
            bar.moved(None)
            bus.remove(bar.address)
            bar.address = None
        if address is not None:
            self._make_room(bus, address, bar.size)
            try:
                bus.add(address, bar.size, bar.device)
            except UnikvmError:
                return  # the guest put it over something else: it stays unmapped there
            bar.address = address
            bar.moved(address)


class PciBus:
    """Bus 0: functions by device and function number."""

    def __init__(self, mmio: Bus, pio: Bus | None = None) -> None:
        self.lock = RLock()
        self._mmio = mmio
        self._pio = pio
        self.functions: dict[int, PciFunction] = {}
        self._ghosts: list[PciFunction] = []

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Plug `function` into `slot` (None: the next free one). Returns its devfn, slot << 3 | number."""
        with self.lock:
            if slot is None:
                used = {devfn >> 3 for devfn in self.functions}
                slot = next((free for free in range(32) if free not in used), 32)
            devfn = slot << 3 | number
            if not 0 <= slot < 32 or not 0 <= number < 8 or devfn in self.functions:
                raise UnikvmError(f"no free PCI slot ({slot:#x}.{number})")
            self.functions[devfn] = function
            function.connect(self._mmio, self._pio, self._bury)
            if number and slot << 3 in self.functions:
                self.functions[slot << 3].config[PCI_HEADER_TYPE] |= PCI_HEADER_MULTIFUNCTION
        return devfn

    def remove(self, devfn: int, *, ghost: bool = False) -> PciFunction | None:
        """Unplug a function, and give it back; None where there is none. Its addresses answer no more when this
        returns; a vCPU may still be in an access that began before.

        `ghost`: its BARs go on to answer, with what the function says when it is gone, until something else wants their
        place: a guest that was not asked may still wait for a register there to change.
        """
        with self.lock:
            function = self.functions.pop(devfn, None)
            if function is not None and ghost:
                self._ghosts.append(function)
            elif function is not None:
                function.disconnect()
                for other in self.functions.values():
                    other.remap()  # a guest may have put another BAR where the removed one was
        return function

    def _bury(self, bus: Bus, address: int, size: int) -> None:
        """Let go of the ghosts in [address, address + size) of `bus`. Under the lock."""
        for ghost in list(self._ghosts):
            for bar in ghost.bars:
                where = self._pio if bar.flags & BAR_IO else self._mmio
                at = bar.address
                if where is bus and at is not None and at < address + size and address < at + bar.size:
                    ghost.disconnect()
                    self._ghosts.remove(ghost)
                    break

    def assign_bars(self, start: int, end: int, start64: int = 0, end64: int = 0) -> None:
        """Preset every memory BAR, as firmware does: in [start, end), those of 64 bits in the second range.

        Raises UnikvmError when the ranges are too small.
        """
        low, high = start, start64
        bars = [(function, bar) for function in self.functions.values() for bar in function.bars]
        for function, bar in sorted(bars, key=lambda entry: -entry[1].size):
            if bar.flags & BAR_IO:
                continue
            above = bool(bar.flags & BAR_MEM64) and end64 > start64
            address = ((high if above else low) + bar.size - 1) & -bar.size
            if address + bar.size > (end64 if above else end):
                raise UnikvmError(f"no room for a BAR of {bar.size:#x} bytes in the PCI window")
            function.assign(bar, address)
            if above:
                high = address + bar.size
            else:
                low = address + bar.size

    def config_read(self, bus: int, devfn: int, offset: int, size: int) -> int:
        """Read configuration space; where there is no function all ones, which is how guests notice."""
        with self.lock:
            function = self.functions.get(devfn) if bus == 0 else None
            return (1 << 8 * size) - 1 if function is None else function.config_read(offset, size)

    def config_write(self, bus: int, devfn: int, offset: int, size: int, value: int) -> None:
        """Write configuration space."""
        with self.lock:  # before the look: it may be removed meanwhile
            function = self.functions.get(devfn) if bus == 0 else None
            if function is not None:
                function.config_write(offset, size, value)
