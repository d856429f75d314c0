# SPDX-License-Identifier: GPL-2.0-only
"""Writes initramfs archives: cpio in the `newc` format (Linux: driver-api/early-userspace/buffer-format.rst).

The same content gives the same bytes: no times, owner root, inode numbers in order.
"""

from __future__ import annotations

import os
import stat

from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
MAX_FILE = 0xFFFF_FFFF  # the format has 8 hexadecimal digits for a size
MAX_NAME = 4096  # Linux passes over longer ones, the final NUL included (init/initramfs.c, N_ALIGN(PATH_MAX))


class Initramfs:
    """Entries by path; directories above them come by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int]] = {}  # mode, content, device number

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode)

    def add_file(self, path: str, data: bytes, mode: int = 0o755) -> None:
        if len(data) > MAX_FILE:
            raise CannotRun(f"{path} is too large for an initramfs: {len(data)} bytes")
        self._add(path, stat.S_IFREG | mode, data)

    def add_symlink(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_node(self, path: str, mode: int, major: int, minor: int) -> None:
        """A device node; `mode` with its type (stat.S_IFCHR or S_IFBLK)."""
        self._add(path, mode, device=os.makedev(major, minor))

    def _add(self, path: str, mode: int, data: bytes = b"", device: int = 0) -> None:
        path = path.strip("/")
        if len(os.fsencode(path)) >= MAX_NAME or "\0" in path:
            raise CannotRun(f"no name for a file in an initramfs: {path[:40]!r}...")
        parent = os.path.dirname(path)
        if parent and parent not in self._entries:
            self.add_dir(parent)
        if parent and not stat.S_ISDIR(self._entries[parent][0]):
            raise CannotRun(f"{path} cannot be in an initramfs where {parent} is no directory")
        self._entries[path] = (mode, data, device)

    def write(self, file: BinaryIO) -> None:
        """The whole archive."""
        for inode, (path, (mode, data, device)) in enumerate(self._entries.items(), 1):
            _write_entry(file, inode, path, mode, data, device)
        _write_entry(file, 0, TRAILER, 0, b"", 0)


def _write_entry(file: BinaryIO, inode: int, path: str, mode: int, data: bytes, device: int) -> None:
    name = os.fsencode(path) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name length, checksum
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, os.major(device), os.minor(device), len(name), 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    file.write(head + bytes(-len(head) % 4))
    file.write(data)
    file.write(bytes(-len(data) % 4))
