# SPDX-License-Identifier: GPL-2.0-only
"""Block device on a raw image (virtio 1.2 §5.2).

Reads and writes go straight between the file and guest memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from struct import Struct

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    VIRTIO_ID_BLOCK,
)
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Chain, Queue

SECTOR = 512
QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2  # data descriptors: one is the header, one the status
MAX_RANGES = 16  # of one discard or write-zeroes request
MAX_DISCARD_SECTORS = 0x3F_FFFF
MAX_ZEROES_SECTORS = 0x1_0000  # 32 MiB: where zeroes have to be written, that is the longest stall of the io thread

_HEADER = Struct("<IIQ")  # struct virtio_blk_outhdr: type, ioprio, sector
_RANGE = Struct("<QII")  # struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
# struct virtio_blk_config: capacity, size_max, seg_max, geometry (4 bytes), blk_size, topology (8 bytes),
# wce, unused, num_queues, max_discard_{sectors,seg}, discard_sector_alignment,
# max_write_zeroes_{sectors,seg}, may_unmap, unused
_CONFIG = Struct("<QII4xI8x2xHIIIIIB3x")
_ZEROES = bytes(1 << 16)


def open_image(path: str, *, readonly: bool) -> tuple[int, int]:
    """Open and lock a raw image: (descriptor, bytes). CannotRun for everything that can be wrong with it.

    A writable image is locked exclusively, a read-only one is shared with others that only read.
    """
    try:
        fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "" if readonly or error.errno == errno.ENOENT else "open it read-only, or make it writable"
        raise CannotRun(f"cannot open disk image {path}: {error.strerror}", hint=hint) from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise CannotRun(f"disk image {path} is neither a file nor a block device")
        size = os.lseek(fd, 0, os.SEEK_END)
        if size == 0:
            raise CannotRun(f"disk image {path} is empty", hint="make one with `truncate -s 1G`")
        if size % SECTOR:
            raise CannotRun(
                f"disk image {path} has {size} bytes, which is not a multiple of {SECTOR}",
                hint="is it a raw image? `truncate -s %512` rounds it up",
            )
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CannotRun(f"disk image {path} is in use by another process") from None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
            return fd, size  # a file system without locks
        os.close(fd)
        raise CannotRun(f"cannot use disk image {path}: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd, size


class Blk(VirtioDevice):
    """virtio-blk.

    Requests are carried out one after the other on the io thread, a doorbell's worth at a time.
    """

    name = "blk"
    device_id = VIRTIO_ID_BLOCK
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, path: str, *, readonly: bool = False, serial: str = "") -> None:
        """Opens `path`; CannotRun when it cannot be used. `serial`: up to 20 ASCII characters for GET_ID."""
        super().__init__()
        self._fd, self._size = open_image(path, readonly=readonly)
        self._readonly = readonly
        self._serial = serial.encode("ascii", "replace")[:VIRTIO_BLK_ID_BYTES].ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH
        if readonly:
            features |= 1 << VIRTIO_BLK_F_RO
        else:
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        self.features = features
        self.config = _CONFIG.pack(
            self._size // SECTOR,
            0,
            SEG_MAX,
            SECTOR,
            1,
            MAX_DISCARD_SECTORS,
            MAX_RANGES,
            1,
            MAX_ZEROES_SECTORS,
            MAX_RANGES,
            1,
        )
        self._write_through = False

    def close(self) -> None:
        super().close()
        self.discard()

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def activated(self) -> None:
        # §5.2.6.2: a driver that cannot flush must find its writes on the disk.
        self._write_through = not self.negotiated(VIRTIO_BLK_F_FLUSH)

    def process(self, queue: Queue) -> None:
        unpack = _HEADER.unpack
        for chain in queue.available():
            status = chain.take_last()
            header = chain.read(16)
            if len(header) < 16:
                status[0] = VIRTIO_BLK_S_IOERR
            else:
                kind, _, sector = unpack(header)
                try:
                    status[0] = self._execute(chain, kind, sector)
                except OSError:
                    status[0] = VIRTIO_BLK_S_IOERR
            queue.add_used(chain)

    def _execute(self, chain: Chain, kind: int, sector: int) -> int:
        """Carry out one request; its status. OSError when the host refuses."""
        if kind == VIRTIO_BLK_T_IN:
            return self._read(chain, sector * SECTOR)
        if kind == VIRTIO_BLK_T_OUT:
            return self._write(chain, sector * SECTOR)
        if kind == VIRTIO_BLK_T_FLUSH:
            os.fdatasync(self._fd)
            return VIRTIO_BLK_S_OK
        if kind == VIRTIO_BLK_T_GET_ID:
            chain.write(self._serial)
            return VIRTIO_BLK_S_OK
        if kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES) and not self._readonly:
            return self._clear(chain, kind)
        return VIRTIO_BLK_S_UNSUPP

    def _read(self, chain: Chain, offset: int) -> int:
        length = chain.writable_len
        if length % SECTOR or offset + length > self._size:
            return VIRTIO_BLK_S_IOERR
        while length:
            count = os.preadv(self._fd, chain.writable, offset)
            if count == 0:
                return VIRTIO_BLK_S_IOERR  # somebody truncated the image
            chain.fill(count)
            offset += count
            length -= count
        return VIRTIO_BLK_S_OK

    def _write(self, chain: Chain, offset: int) -> int:
        length = chain.readable_len
        if self._readonly or length % SECTOR or offset + length > self._size:
            return VIRTIO_BLK_S_IOERR
        while length:
            count = os.pwritev(self._fd, chain.readable, offset)
            chain.skip(count)
            offset += count
            length -= count
        if self._write_through:
            os.fdatasync(self._fd)
        return VIRTIO_BLK_S_OK

    def _clear(self, chain: Chain, kind: int) -> int:
        """DISCARD and WRITE_ZEROES (§5.2.6): all ranges are checked before the first is touched."""
        if chain.readable_len % _RANGE.size or not 0 < chain.readable_len <= MAX_RANGES * _RANGE.size:
            return VIRTIO_BLK_S_IOERR
        limit = MAX_DISCARD_SECTORS if kind == VIRTIO_BLK_T_DISCARD else MAX_ZEROES_SECTORS
        known = 0 if kind == VIRTIO_BLK_T_DISCARD else VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        ranges = list(_RANGE.iter_unpack(chain.read(chain.readable_len)))
        for sector, sectors, flags in ranges:
            if flags & ~known:
                return VIRTIO_BLK_S_UNSUPP
            if sectors > limit or (sector + sectors) * SECTOR > self._size:
                return VIRTIO_BLK_S_IOERR
        for sector, sectors, flags in ranges:
            if not sectors:
                continue
            if kind == VIRTIO_BLK_T_DISCARD:
                self._discard(sector * SECTOR, sectors * SECTOR)
            else:
                unmap = bool(flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
                self._zero(sector * SECTOR, sectors * SECTOR, unmap=unmap)
        if self._write_through:
            os.fdatasync(self._fd)
        return VIRTIO_BLK_S_OK

    def _discard(self, offset: int, length: int) -> None:
        from unikvm.sys.fallocate import punch_hole

        try:
            punch_hole(self._fd, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # The content of discarded sectors is undefined: to keep it is allowed.

    def _zero(self, offset: int, length: int, *, unmap: bool) -> None:
        from unikvm.sys.fallocate import punch_hole, zero_range

        try:
            (punch_hole if unmap else zero_range)(self._fd, offset, length)
            return
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        end = offset + length
        while offset < end:
            offset += os.pwrite(self._fd, _ZEROES[: end - offset], offset)
