# SPDX-License-Identifier: GPL-2.0-only
"""Disks that become larger while their guest runs, whoever serves them. None becomes smaller: a driver would learn that
by errors, where its data was.
"""

from __future__ import annotations

from unikvm.errors import CannotRun
from unikvm.lean import Lock
from unikvm.sys.diskfile import SECTOR
from unikvm.units import format_size
from unikvm.virtio.device import VirtioDevice

_CAPACITY = 8  # bytes of struct virtio_blk_config: the number of sectors comes first


class Growing(VirtioDevice):
    """A block device. A way of serving derives from this, and makes the image larger in `enlarge`."""

    path = ""  # of the image, as its user named it
    readonly = False

    def __init__(self) -> None:
        super().__init__()
        self._growing = Lock()  # so that what is looked at stays as it is; before the device's lock

    @property
    def size(self) -> int:
        """Bytes of the disk, as the driver is told."""
        return self.size_in(self.config)

    @staticmethod
    def size_in(config: bytes) -> int:
        """Bytes of the disk whose configuration space that is."""
        return int.from_bytes(config[:_CAPACITY], "little") * SECTOR

    def grow(self, size: int = 0) -> None:
        """Make the image `size` bytes, or take note of what it has become by itself, and tell the driver.

        CannotRun where it cannot be. May wait for the host: not on the io thread.
        """
        with self._growing:
            if size and self.readonly:
                raise CannotRun(f"disk {self.path} is read-only")
            if 0 < size < self.size:
                raise CannotRun(f"disk {self.path} has {format_size(self.size)}, and no disk becomes smaller")
            if size % SECTOR:
                raise CannotRun(f"a disk of {size} bytes is not possible", hint=f"a multiple of {SECTOR}")
            self.enlarge(size)

    def enlarge(self, size: int) -> None:
        """What `grow` does, with a size that was looked at."""
        raise NotImplementedError

    def has_grown(self, size: int) -> None:
        """The image has `size` bytes: from now on the driver may use them. Under the lock."""
        if size > self.size:
            self.config = (size // SECTOR).to_bytes(_CAPACITY, "little") + self.config[_CAPACITY:]
            self.config_changed()
