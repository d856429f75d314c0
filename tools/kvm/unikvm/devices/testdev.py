# SPDX-License-Identifier: GPL-2.0-only
"""pc-testdev: what kvm-unit-tests' x86 tests poke at to make KVM emulate (QEMU's device of that name).

Five ranges, each a bus device of its own: a 32-bit register (`register`, also at `byte_register`), a page
flusher (`flush`), interrupt lines (`lines`) and 64 KiB of memory that is not RAM (`iomem`).
"""

from __future__ import annotations

from unikvm.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


IOMEM_SIZE = 0x10000


class TestDevState(State):
    register: int = 0
    iomem: bytes = bytes(IOMEM_SIZE)


class TestDev:
    """`set_line(line, level)` drives an interrupt line; `flush_page(gpa)` makes KVM forget its mapping of a
    page."""

    def __init__(
        self,
        set_line: Callable[[int, bool], object],
        flush_page: Callable[[int], object] = lambda _gpa: None,
    ) -> None:
        self.register = Register()
        self.byte_register = self.register
        self.flush = _Writer(lambda _offset, value: flush_page(value & ~0xFFF))
        self.lines = _Writer(lambda offset, value: set_line(offset, value != 0))
        self.iomem = Iomem()

    def save(self) -> TestDevState:
        return TestDevState(self.register.value, bytes(self.iomem.data))

    def restore(self, state: TestDevState) -> None:
        self.register.value = state.register
        self.iomem.data[:] = state.iomem


class Register:
    """Four bytes that keep what was written to them."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        mask = (1 << 8 * size) - 1 << 8 * offset
        self.value = (self.value & ~mask | value << 8 * offset & mask) & 0xFFFF_FFFF


class Iomem:
    """Memory behind MMIO exits."""

    def __init__(self) -> None:
        self.data = bytearray(IOMEM_SIZE)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        end = min(offset + size, IOMEM_SIZE)
        self.data[offset:end] = value.to_bytes(size, "little")[: end - offset]


class _Writer:
    """A write-only range."""

    def __init__(self, action: Callable[[int, int], object]) -> None:
        self._action = action

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self._action(offset, value)
