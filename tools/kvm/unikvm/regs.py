# SPDX-License-Identifier: GPL-2.0-only
"""Register blocks as declarations: one table gives access, decoding and names for traces.

A register names the functions of its owner that read and write it, so a type checker sees every access:

    COMMON = RegisterBlock(
        "virtio-pci common configuration",
        56,
        Reg("device_status", 0x14, 1, VirtioPci.read_status, VirtioPci.write_status),
    )
    COMMON.read(owner, 0x14, 1)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Generic, TypeVar

    # A register of a base class serves its derived classes: what takes an owner takes its subtypes.
    T = TypeVar("T", contravariant=True)
else:
    T = None

    class Generic:
        """What `typing` would check, and costs more to import than all of this package."""

        def __class_getitem__(cls, _item):
            return cls


class Reg(Generic[T]):
    """One little-endian register of 1, 2, 4 or 8 bytes.

    Without `read` it reads as zero, without `write` it is fixed.
    """

    __slots__ = ("name", "offset", "read", "size", "write")

    def __init__(
        self,
        name: str,
        offset: int,
        size: int,
        read: Callable[[T], int] | None = None,
        write: Callable[[T, int], None] | None = None,
    ) -> None:
        self.name = name
        self.offset = offset
        self.size = size
        self.read = read
        self.write = write

    def __repr__(self) -> str:
        return f"<{self.name} at {self.offset:#x}, {self.size} bytes>"


class RegisterBlock(Generic[T]):
    """The registers of one range of `length` bytes."""

    def __init__(self, name: str, length: int, *registers: Reg[T]) -> None:
        self.name = name
        self.length = length
        self.registers = registers
        self._at: list[Reg[T] | None] = [None] * length
        for register in registers:
            for offset in range(register.offset, register.offset + register.size):
                if self._at[offset] is not None:
                    raise ValueError(f"{name}: {register} overlaps {self._at[offset]}")
                self._at[offset] = register

    def find(self, offset: int) -> Reg[T] | None:
        """The register that covers the byte at `offset`, or None."""
        return self._at[offset] if 0 <= offset < self.length else None

    def read(self, owner: T, offset: int, size: int) -> int:
        """Read `size` bytes at `offset`: any part of a register, or several; holes read as zero."""
        value = 0
        end = offset + size
        position = offset
        while position < end:
            register = self.find(position)
            if register is None:
                position += 1
                continue
            if register.read is not None:
                # Shifted to where the access sees it; what lies before or after the access falls off.
                shift = 8 * (register.offset - offset)
                content = register.read(owner)
                value |= content << shift if shift >= 0 else content >> -shift
            position = register.offset + register.size
        return value & ((1 << (8 * size)) - 1)

    def write(self, owner: T, offset: int, size: int, value: int) -> None:
        """Write whole registers, in the order of their offsets. A write of part of a register is dropped."""
        end = offset + size
        position = offset
        while position < end:
            register = self.find(position)
            if register is None:
                position += 1
                continue
            after = register.offset + register.size
            if register.write is not None and register.offset >= offset and after <= end:
                content = value >> (8 * (register.offset - offset))
                register.write(owner, content & ((1 << (8 * register.size)) - 1))
            position = after
