# SPDX-License-Identifier: GPL-2.0-only
"""A disk's image: a file or a block device, read into and written from memory of the caller's.

With O_DIRECT nothing passes through the host's page cache. The kernel wants whole, aligned blocks for that; what is not
goes through a buffer, in which the rest of its first and last block is read before.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SECTOR = 512
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)  # that direct I/O may want
BOUNCE = 1 << 20  # bytes of unaligned requests that are moved at once
_ZEROES = bytes(1 << 16)
_UNABLE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


class DiskFile:
    """The image at `path`, open and locked. CannotRun for everything that can be wrong with it.

    `size` and `block` are in bytes: requests that begin and end at multiples of `block` are the fast ones. `logical` is
    what a partition table in the image counts in. Methods raise OSError where the host refuses.
    A writable image is locked exclusively, a read-only one is shared with others that only read.
    """

    def __init__(self, path: str, *, readonly: bool = False, direct: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self.direct = direct
        self.fd = _open(path, readonly=readonly, direct=direct)
        self.block = self.logical = SECTOR
        self._unsure = False  # the page cache and the disk may differ
        self._buffer: mmap.mmap | None = None  # aligned; made when it is needed
        try:
            self.size, self.is_device = self._look()
            if self.is_device:
                from unikvm.sys.fallocate import block_size, is_readonly

                if not readonly and is_readonly(self.fd):
                    raise CannotRun(f"{path} is a read-only block device", hint="add ,ro")
                self.block = self.logical = block_size(self.fd)
            if direct:
                self.block = max(self.logical, self._direct_block())
            _check_size(path, self.size, self._multiple)
            self._lock()
        except BlockingIOError:
            self.close()
            raise CannotRun(f"disk image {path} is in use by another process") from None
        except OSError as error:
            self.close()
            raise CannotRun(f"cannot use disk image {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release what it holds; twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._buffer = None

    def _look(self) -> tuple[int, bool]:
        mode = os.fstat(self.fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise CannotRun(f"disk image {self.path} is neither a file nor a block device")
        return os.lseek(self.fd, 0, os.SEEK_END), stat.S_ISBLK(mode)

    def _lock(self) -> None:
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
                raise  # else: a file system without locks

    def _direct_block(self) -> int:
        """The smallest block that direct I/O takes here, by trying."""
        for block in BLOCK_SIZES:
            try:
                os.preadv(self.fd, [self._bounce()[block : 2 * block]], 0)  # at an address that is no more aligned
                return block
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        raise CannotRun(f"disk image {self.path}: direct I/O does not work there", hint="leave out ,direct")

    def grow(self, size: int = 0) -> int:
        """Make the image `size` bytes, where it has fewer; without a size it stays as it has become. Its bytes then.

        It is never made smaller. CannotRun where it cannot be used like that.
        """
        try:
            now = os.lseek(self.fd, 0, os.SEEK_END)
            if size and size != now:
                if size < now:
                    raise CannotRun(
                        f"disk image {self.path} has {now} bytes already", hint="without a size, the guest gets them"
                    )
                if self.is_device:
                    raise CannotRun(f"{self.path} is a block device of {now} bytes", hint="enlarge that first")
                _check_size(self.path, size, self._multiple)
                os.ftruncate(self.fd, size)
                now = size
        except OSError as error:
            raise CannotRun(f"disk image {self.path} cannot be made larger: {error.strerror}") from None
        if now < self.size:
            raise CannotRun(f"disk image {self.path} has become smaller: {now} bytes instead of {self.size}")
        _check_size(self.path, now, self._multiple)
        self.size = now
        return now

    @property
    def _multiple(self) -> int:
        """What its size has to be a multiple of."""
        return self.block if self.direct else SECTOR

    # Requests

    def read(self, views: Sequence[memoryview], offset: int) -> int:
        """Read at `offset` into `views`, as far as one system call comes; 0 at the end of the file."""
        try:
            return os.preadv(self.fd, views, offset)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        return self._read_bounced(views, offset)

    def write(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` at `offset`, as far as one system call comes."""
        try:
            return os.pwritev(self.fd, views, offset)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        return self._write_bounced(views, offset)

    def flush(self) -> None:
        """When this returns, what was written before survives a power failure. After a failure it fails for ever: the
        host may have marked pages as clean that it could not write, and would say yes the next time."""
        if self._unsure:
            raise OSError(errno.EIO, "what could not be written before may be lost")
        try:
            os.fdatasync(self.fd)
        except OSError:
            self._unsure = not self.direct
            raise

    def discard(self, offset: int, length: int) -> None:
        """Free a range if that is possible; its content is undefined afterwards, so to keep it is allowed."""
        from unikvm.sys.fallocate import discard_device, punch_hole

        try:
            (discard_device if self.is_device else punch_hole)(self.fd, offset, length)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range zero; with `unmap` it need not stay allocated. Where the host cannot, zeroes are written."""
        from unikvm.sys.fallocate import punch_hole, zero_range

        for make in (punch_hole, zero_range) if unmap else (zero_range,):
            try:
                make(self.fd, offset, length)
                return
            except OSError as error:
                if error.errno not in _UNABLE:
                    raise
        zeroes = memoryview(_ZEROES)
        end = offset + length
        while offset < end:
            offset += self.write([zeroes[: end - offset]], offset)

    # Direct I/O with what is not aligned

    def _bounce(self) -> memoryview:
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, BOUNCE)
        return memoryview(self._buffer)

    def _envelope(self, views: Sequence[memoryview], offset: int) -> tuple[int, int, int]:
        """(start, end, count): the whole blocks around the first `count` bytes of a request that fit the buffer."""
        start = offset & -self.block
        length = sum(map(len, views))
        count = min(length, BOUNCE - (offset - start))
        return start, -(-(offset + count) // self.block) * self.block, count

    def _read_bounced(self, views: Sequence[memoryview], offset: int) -> int:
        start, end, count = self._envelope(views, offset)
        buffer = self._bounce()
        got = os.preadv(self.fd, [buffer[: end - start]], start) - (offset - start)
        at, left = offset - start, min(count, got)
        if left <= 0:
            return 0
        done = left
        for view in views:
            size = min(len(view), left)
            view[:size] = buffer[at : at + size]
            at += size
            left -= size
            if not left:
                break
        return done

    def _write_bounced(self, views: Sequence[memoryview], offset: int) -> int:
        start, end, count = self._envelope(views, offset)
        buffer = self._bounce()
        block = self.block
        for edge in {start, end - block}:
            if edge < offset or edge + block > offset + count:
                at = edge - start
                if os.preadv(self.fd, [buffer[at : at + block]], edge) < block:
                    raise OSError(errno.EIO, "the image has become shorter")
        at, left = offset - start, count
        for view in views:
            size = min(len(view), left)
            buffer[at : at + size] = view[:size]
            at += size
            left -= size
            if not left:
                break
        written = os.pwritev(self.fd, [buffer[: end - start]], start)
        if written <= offset - start:
            raise OSError(errno.EIO, "nothing could be written")
        return min(count, written - (offset - start))


def _open(path: str, *, readonly: bool, direct: bool) -> int:
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        hint = ""
        if direct and error.errno == errno.EINVAL:
            raise CannotRun(f"disk image {path}: its file system has no direct I/O", hint="leave out ,direct") from None
        if not readonly and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "add ,ro for a read-only disk, or make it writable"
        raise CannotRun(f"cannot open disk image {path}: {error.strerror}", hint=hint) from None


def _check_size(path: str, size: int, multiple: int) -> None:
    if size == 0:
        raise CannotRun(f"disk image {path} is empty", hint="make one with `truncate -s 1G`")
    if size % multiple:
        raise CannotRun(
            f"disk image {path} has {size} bytes, which is not a multiple of {multiple}",
            hint=f"is it a raw image? `truncate -s %{multiple}` rounds it up",
        )
