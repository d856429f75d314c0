# SPDX-License-Identifier: GPL-2.0-only
"""fallocate(2) with modes, which Python does not have, and the like of block devices.

Imported at the first discard or write-zeroes request, for a block device, and when a guest gives up memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from unikvm.uapi import disk as uapi

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes at `offset`: they read as zero. OSError EOPNOTSUPP where the file system cannot."""
    _fallocate(fd, uapi.FALLOC_FL_PUNCH_HOLE | uapi.FALLOC_FL_KEEP_SIZE, offset, length)


def allocate(fd: int, offset: int, length: int) -> None:
    """See that there is room for `length` bytes at `offset`. OSError ENOSPC where there is none."""
    _fallocate(fd, uapi.FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make `length` bytes at `offset` zero and keep them allocated.

    OSError EOPNOTSUPP where that is not possible.
    """
    _fallocate(fd, uapi.FALLOC_FL_ZERO_RANGE | uapi.FALLOC_FL_KEEP_SIZE, offset, length)


def discard_device(fd: int, offset: int, length: int) -> None:
    """Tell the block device `fd` that nobody needs these bytes; what is read there afterwards is its choice.

    OSError EOPNOTSUPP where it has no use for that, EINVAL where its blocks are larger.
    """
    fcntl.ioctl(fd, uapi.BLKDISCARD, struct.pack("=QQ", offset, length))


def block_size(fd: int) -> int:
    """Bytes of a logical block of the block device `fd`."""
    size: int = struct.unpack("=i", fcntl.ioctl(fd, uapi.BLKSSZGET, bytes(4)))[0]
    return size


def is_readonly(fd: int) -> bool:
    """Whether nothing can be written to the block device `fd`, however it was opened."""
    return fcntl.ioctl(fd, uapi.BLKROGET, bytes(4)) != bytes(4)
