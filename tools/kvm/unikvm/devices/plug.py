# SPDX-License-Identifier: GPL-2.0-only
"""Registers through which a guest's ACPI methods learn that processors and PCI devices come and go, and let them go.

The blocks are laid out as those of QEMU's machines (docs/specs/acpi_cpu_hotplug and acpi_pci_hotplug of its tree); the
methods that use them are `arch.x86_64.plugging`'s. Accesses come on vCPU threads, requests from any thread.

Lock order: the `_lock` of a block protects its state; `PlugLine._lock` is taken with it held, and what a guest lets go
is told without.
"""

from __future__ import annotations

from unikvm.lean import Lock
from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Line(Protocol):
        def set(self, level: bool) -> None: ...


class PlugLine:
    """One level-triggered interrupt line for several blocks: high while any of them has something to tell."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._lock = Lock()
        self._telling: set[str] = set()

    def set(self, who: str, telling: bool) -> None:
        with self._lock:
            before = bool(self._telling)
            (self._telling.add if telling else self._telling.discard)(who)
            if bool(self._telling) != before:
                self._line.set(not before)


# PCI slots: what came (read, and taken by it), what should go (likewise), and what the guest let go (written).
_PCI_UP, _PCI_DOWN, _PCI_EJECT = 0, 4, 8


class PciPlugState(State):
    """One bit a slot."""

    up: int = 0
    down: int = 0


class PciPlug:
    """12 bytes of ports. `ejected(slot)` is called on the vCPU's thread when the guest has let go of a slot."""

    def __init__(self, line: PlugLine, ejected: Callable[[int], None]) -> None:
        self._line = line
        self._ejected = ejected
        self._lock = Lock()
        self._state = PciPlugState()

    def came(self, slot: int) -> None:
        """Something has changed in `slot`: the guest is to look."""
        with self._lock:
            self._state.down &= ~(1 << slot)
            self._state.up |= 1 << slot
            self._update()

    def ask(self, slot: int) -> None:
        """Ask the guest to let go of `slot`."""
        with self._lock:
            self._state.down |= 1 << slot
            self._update()

    def forget(self, slot: int) -> None:
        """Nothing is to be told of `slot` any more."""
        with self._lock:
            self._state.up &= ~(1 << slot)
            self._state.down &= ~(1 << slot)
            self._update()

    def read(self, offset: int, size: int) -> int:
        if size != 4 or offset not in (_PCI_UP, _PCI_DOWN):
            return 0
        with self._lock:
            state = self._state
            if offset == _PCI_UP:
                bits, state.up = state.up, 0
            else:
                bits, state.down = state.down, 0
            self._update()
        return bits

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 4 and offset == _PCI_EJECT:
            for slot in range(32):
                if value >> slot & 1:
                    self._ejected(slot)

    def save(self) -> PciPlugState:
        with self._lock:
            return self._state.replace()

    def restore(self, state: PciPlugState) -> None:
        with self._lock:
            self._state = state.replace()
            self._update()

    def _update(self) -> None:
        self._line.set("pci", bool(self._state.up | self._state.down))


_SELECTOR, _FLAGS, _COMMAND, _DATA = 0, 4, 5, 8
_ENABLED, _INSERTING, _REMOVING, _EJECT = 1, 2, 4, 8
_NEXT_EVENT, _OST_EVENT, _OST_STATUS = 0, 1, 2  # what the data register is, after a command


class CpuPlugState(State):
    """The CPUs that the guest has been given, those it is to be told of, and the registers."""

    enabled: tuple[bool, ...]
    inserting: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()
    selector: int = 0
    command: int = _NEXT_EVENT
    ost_event: int = 0


class CpuPlug:
    """12 bytes of ports. Told on the vCPU's thread: `ejected(cpu)`, and `reported(cpu, event, status)`, the guest's
    word on what it was asked (_OST, ACPI 6.5 §6.3.5).
    """

    def __init__(
        self,
        line: PlugLine,
        enabled: tuple[bool, ...],
        ejected: Callable[[int], None],
        reported: Callable[[int, int, int], None],
    ) -> None:
        self._line = line
        self._ejected = ejected
        self._reported = reported
        self._lock = Lock()
        self._enabled = list(enabled)
        self._inserting: set[int] = set()
        self._removing: set[int] = set()
        self._selector = 0
        self._command = _NEXT_EVENT
        self._ost_event = 0

    @property
    def enabled(self) -> tuple[bool, ...]:
        """Which CPUs the guest has."""
        return tuple(self._enabled)

    def insert(self, cpu: int) -> None:
        """Give `cpu` to the guest."""
        with self._lock:
            self._enabled[cpu] = True
            self._removing.discard(cpu)
            self._inserting.add(cpu)
            self._update()

    def ask(self, cpu: int) -> None:
        """Ask the guest to let go of `cpu`."""
        with self._lock:
            self._removing.add(cpu)
            self._update()

    def forget(self, cpu: int) -> None:
        """Ask no more."""
        with self._lock:
            self._removing.discard(cpu)
            self._update()

    def read(self, offset: int, size: int) -> int:
        with self._lock:
            cpu = self._selector
            if cpu >= len(self._enabled):
                return 0  # OVMF selects one after another and reads their numbers until it gets this
            if offset == _FLAGS and size == 1:
                flags = _ENABLED if self._enabled[cpu] else 0
                flags |= _INSERTING if cpu in self._inserting else 0
                return flags | (_REMOVING if cpu in self._removing else 0)
            if offset == _DATA and size == 4 and self._command == _NEXT_EVENT:
                return cpu
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        tell: Callable[[], None] | None = None
        with self._lock:
            if offset == _SELECTOR and size == 4:
                self._selector = value
            elif offset == _COMMAND and size == 1:
                self._command = value
                if value == _NEXT_EVENT:
                    self._select_next()
            elif self._selector >= len(self._enabled):
                return
            elif offset == _FLAGS and size == 1:
                tell = self._write_flags(self._selector, value)
            elif offset == _DATA and size == 4:
                tell = self._write_data(self._selector, value)
            self._update()
        if tell is not None:
            tell()

    def save(self) -> CpuPlugState:
        with self._lock:
            return CpuPlugState(
                enabled=tuple(self._enabled),
                inserting=tuple(sorted(self._inserting)),
                removing=tuple(sorted(self._removing)),
                selector=self._selector,
                command=self._command,
                ost_event=self._ost_event,
            )

    def restore(self, state: CpuPlugState) -> None:
        with self._lock:
            self._enabled = list(state.enabled)
            self._inserting, self._removing = set(state.inserting), set(state.removing)
            self._selector, self._command, self._ost_event = state.selector, state.command, state.ost_event
            self._update()

    def _select_next(self) -> None:
        """Select the next CPU that has something to tell, from the selected one on; none: it stays."""
        waiting = self._inserting | self._removing
        if waiting:
            later = [cpu for cpu in waiting if cpu >= self._selector]
            self._selector = min(later or waiting)

    def _write_flags(self, cpu: int, value: int) -> Callable[[], None] | None:
        if value & _INSERTING:
            self._inserting.discard(cpu)
        if value & _REMOVING:
            self._removing.discard(cpu)
        if value & _EJECT and cpu and self._enabled[cpu]:
            self._enabled[cpu] = False
            self._inserting.discard(cpu)
            self._removing.discard(cpu)
            return lambda: self._ejected(cpu)
        return None

    def _write_data(self, cpu: int, value: int) -> Callable[[], None] | None:
        if self._command == _OST_EVENT:
            self._ost_event = value
        elif self._command == _OST_STATUS:
            event = self._ost_event
            return lambda: self._reported(cpu, event, value)
        return None

    def _update(self) -> None:
        self._line.set("cpu", bool(self._inserting or self._removing))
