# SPDX-License-Identifier: GPL-2.0-only
"""Block device on a raw image (virtio 1.2 §5.2).

Reads and writes go straight between the file and guest memory.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import CannotRun
from unikvm.lean import Empty, SimpleQueue
from unikvm.sys.diskfile import SECTOR, DiskFile
from unikvm.uapi.virtio import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
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
from unikvm.virtio.blocking import Blocking
from unikvm.virtio.growing import Growing
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2  # data descriptors: one is the header, one the status
MAX_RANGES = 16  # of one discard or write-zeroes request
MAX_DISCARD_SECTORS = 0x3F_FFFF
GROWTH_SECONDS = 30.0  # that somebody who makes the disk larger waits for the request under way
MAX_ZEROES_SECTORS = 0x1_0000  # 32 MiB: where zeroes have to be written, that is how long a reset waits

_HEADER = Struct("<IIQ")  # struct virtio_blk_outhdr: type, ioprio, sector
_RANGE = Struct("<QII")  # struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
# struct virtio_blk_config: capacity, size_max, seg_max, geometry (4 bytes), blk_size, physical_block_exp and
# alignment_offset, min_io_size, opt_io_size, wce, unused, num_queues, max_discard_{sectors,seg},
# discard_sector_alignment, max_write_zeroes_{sectors,seg}, may_unmap, unused
_CONFIG = Struct("<QII4xIBxHI2xHIIIIIB3x")


class Blk(Blocking, Growing):
    """virtio-blk.

    Requests are carried out one after the other on the disk's own thread, a doorbell's worth at a time, whatever the
    number of queues. What the host refuses is an I/O error of the guest, and `say` is told once for each kind of it.
    """

    name = "blk"
    device_id = VIRTIO_ID_BLOCK

    def __init__(
        self,
        path: str,
        *,
        readonly: bool = False,
        serial: str = "",
        queues: int = 1,
        direct: bool = False,
        writethrough: bool = False,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """Opens `path`; CannotRun when it cannot be used. `serial`: up to 20 ASCII characters for GET_ID. `direct`:
        past the host's page cache. `writethrough`: each write is on the disk before the driver has the answer.
        """
        super().__init__()
        self.queue_sizes = (QUEUE_SIZE,) * queues
        self._file = file = DiskFile(path, readonly=readonly, direct=direct)
        self.path = path
        self.readonly = readonly
        self._serial = serial.encode("ascii", "replace")[:VIRTIO_BLK_ID_BYTES].ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        self._size = file.size
        self._say = say
        self._told: set[str] = set()
        features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH
        features |= 1 << VIRTIO_BLK_F_TOPOLOGY
        if queues > 1:
            features |= 1 << VIRTIO_BLK_F_MQ
        if readonly:
            features |= 1 << VIRTIO_BLK_F_RO
        else:
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        self.features = features
        self.config = _CONFIG.pack(
            self._size // SECTOR,
            0,
            SEG_MAX,
            file.logical,
            (file.block // file.logical).bit_length() - 1,
            file.block // file.logical,
            0,
            queues,
            MAX_DISCARD_SECTORS,
            MAX_RANGES,
            file.block // SECTOR,
            MAX_ZEROES_SECTORS,
            MAX_RANGES,
            1,
        )
        self._always_through = writethrough
        self._write_through = False

    def let_go(self) -> None:
        self._file.close()

    def enlarge(self, size: int) -> None:
        """On the disk's own thread, between requests: they must not end beyond the file."""
        done: SimpleQueue[CannotRun | None] = SimpleQueue()

        def work() -> None:
            try:
                now = self._file.grow(size)
            except CannotRun as error:
                done.put(error)
                return
            with self.lock:
                self._size = now
                self.has_grown(now)
            done.put(None)

        with self.lock:
            if not self.doorbells:
                raise CannotRun(f"disk {self.path} is not in use any more")
            self.loop.call_soon(work)
        try:
            error = done.get(timeout=GROWTH_SECONDS)
        except Empty:
            raise CannotRun(f"disk {self.path}: a request does not end; it grows when that has") from None
        if error is not None:
            raise error

    def activated(self) -> None:
        # §5.2.6.2: a driver that cannot flush must find its writes on the disk.
        self._write_through = self._always_through or not self.negotiated(VIRTIO_BLK_F_FLUSH)

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
                except OSError as error:
                    status[0] = VIRTIO_BLK_S_IOERR
                    self._tell(error.strerror or str(error))
            queue.add_used(chain)
            if self.interrupted:
                queue.kick()
                return

    def _execute(self, chain: Chain, kind: int, sector: int) -> int:
        """Carry out one request; its status. OSError when the host refuses."""
        if kind == VIRTIO_BLK_T_IN:
            return self._read(chain, sector * SECTOR)
        if kind == VIRTIO_BLK_T_OUT:
            return self._write(chain, sector * SECTOR)
        if kind == VIRTIO_BLK_T_FLUSH:
            self._file.flush()
            return VIRTIO_BLK_S_OK
        if kind == VIRTIO_BLK_T_GET_ID:
            chain.write(self._serial)
            return VIRTIO_BLK_S_OK
        if kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES) and not self.readonly:
            return self._clear(chain, kind)
        return VIRTIO_BLK_S_UNSUPP

    def _read(self, chain: Chain, offset: int) -> int:
        length = chain.writable_len
        if length % SECTOR or offset + length > self._size:
            return VIRTIO_BLK_S_IOERR
        while length:
            count = self._file.read(chain.writable, offset)
            if count == 0:
                self._tell("somebody has made the image shorter")
                return VIRTIO_BLK_S_IOERR
            chain.fill(count)
            offset += count
            length -= count
        return VIRTIO_BLK_S_OK

    def _write(self, chain: Chain, offset: int) -> int:
        length = chain.readable_len
        if self.readonly or length % SECTOR or offset + length > self._size:
            return VIRTIO_BLK_S_IOERR
        while length:
            count = self._file.write(chain.readable, offset)
            chain.skip(count)
            offset += count
            length -= count
        if self._write_through:
            self._file.flush()
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
                self._file.discard(sector * SECTOR, sectors * SECTOR)
            else:
                unmap = bool(flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
                self._file.zero(sector * SECTOR, sectors * SECTOR, unmap=unmap)
        if self._write_through:
            self._file.flush()
        return VIRTIO_BLK_S_OK

    def _tell(self, why: str) -> None:
        """The user, once: the guest's own log says which requests they were."""
        if why not in self._told:
            self._told.add(why)
            self._say(f"disk {self._file.path}: {why}: the guest has an I/O error")
