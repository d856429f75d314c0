# SPDX-License-Identifier: GPL-2.0-only
"""fallocate(2) with modes, which Python does not have.

Imported at the first discard or write-zeroes request.
"""

from __future__ import annotations

import ctypes
import os

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes at `offset`: they read as zero. OSError EOPNOTSUPP where the file system cannot."""
    _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make `length` bytes at `offset` zero and keep them allocated.

    OSError EOPNOTSUPP where that is not possible.
    """
    _fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)
