# SPDX-License-Identifier: GPL-2.0-only
"""Files into a guest: a walk that sends entries, contents and holes to the agent. Its mirror is guest/copyout.c."""

from __future__ import annotations

import errno
import os
import stat

from unikvm import wire
from unikvm.remote import frames
from unikvm.remote.frames import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = 256  # directories within each other: copy.h
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def push(
    stream: Stream,
    source: str,
    target: str,
    *,
    into: bool = False,
    warn: Callable[[str], object],
    progress: Callable[[int, int], object] = lambda _done, _size: None,
) -> bool:
    """Copy the machine's `source` to `target` in the guest: into it where it is a directory, which with `into` it has
    to be. Whether all of it was copied; `warn` is told what was left out, `progress` of each piece (bytes of it, and
    of the whole file). Refused where nothing can be copied, or no more."""
    name = os.path.basename(source.rstrip("/")) or "."
    stream.put_words(frames.REQUEST, "put", target, "." if name == ".." else name, "into" if into else "as")
    walk = _Walk(stream, warn, progress)
    walk.any(None, source, source)
    stream.put(frames.DONE)
    while not walk.done:
        walk.listen(*stream.wait())
    return not walk.warned


class _Walk:
    def __init__(self, stream: Stream, warn: Callable[[str], object], progress: Callable[[int, int], object]) -> None:
        self._stream = stream
        self._warn = warn
        self._progress = progress
        self._depth = 0
        self.warned = False
        self.done = False

    def listen(self, kind: int, data: bytes) -> None:
        """What the agent says meanwhile."""
        if kind == frames.WARNING:
            self._leave_out(f"in the guest: {frames.text(data)}")
        elif kind == frames.DONE:
            self.done = True

    def any(self, directory: int | None, name: str, path: str) -> None:
        """Whatever `name` in `directory` is. Only at the top is a symbolic link followed, and a device read."""
        top = directory is None
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=top)
            if stat.S_ISLNK(status.st_mode):
                self._entry("link", name, os.readlink(name, dir_fd=directory), _time(status))
                return
            if not top and not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise OSError(errno.EINVAL, "neither a file nor a directory")
            fd = os.open(name, _FLAGS | (0 if top else os.O_NOFOLLOW), dir_fd=directory)
        except OSError as error:
            self._leave_out(f"{path}: {error.strerror}")
            return
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                self._directory(fd, name, path, status)
            else:
                self._file(fd, name, path, status)
        finally:
            os.close(fd)

    def _directory(self, fd: int, name: str, path: str, status: os.stat_result) -> None:
        if self._depth == MAX_DEPTH:
            self._leave_out(f"{path}: too deep")
            return
        try:
            names = sorted(os.listdir(fd))
        except OSError as error:
            self._leave_out(f"{path}: {error.strerror}")
            names = []
        self._entry("dir", name, f"{stat.S_IMODE(status.st_mode):o}", _time(status))
        self._depth += 1
        for one in names:
            self.any(fd, one, os.path.join(path, one))
        self._depth -= 1
        self._put(frames.UP)

    def _file(self, fd: int, name: str, path: str, status: os.stat_result) -> None:
        self._entry("file", name, f"{stat.S_IMODE(status.st_mode):o}", _time(status), str(status.st_size))
        self._progress(0, status.st_size)
        try:
            if stat.S_ISREG(status.st_mode) and status.st_blocks < status.st_size // 512:
                self._sparse(fd, status.st_size)
            else:
                self._bytes(fd, 1 << 63)
        except OSError as error:
            self._leave_out(f"{path}: {error.strerror}")
        self._put(frames.EOF)

    def _sparse(self, fd: int, size: int) -> None:
        at = 0
        while at < size:
            try:
                data = min(os.lseek(fd, at, os.SEEK_DATA), size)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if data > at:
                self._put(frames.HOLE, str(data - at).encode())
                self._progress(data - at, size)
            if data == size:
                return
            end = os.lseek(fd, data, os.SEEK_HOLE)
            os.lseek(fd, data, os.SEEK_SET)
            if not (sent := self._bytes(fd, end - data)):
                return  # shortened in the meantime
            at = data + sent

    def _bytes(self, fd: int, length: int) -> int:
        done = 0
        while done < length and (data := os.read(fd, min(frames.MAX_DATA, length - done))):
            self._put(frames.DATA, data)
            self._progress(len(data), -1)
            done += len(data)
        return done

    def _entry(self, kind: str, name: str, *words: str) -> None:
        # At the top the agent knows the name; that of a path would be none.
        self._put(frames.ENTRY, wire.encode(kind, name if self._depth else "top", *words)[:-1])

    def _put(self, kind: int, data: bytes = b"") -> None:
        """Send a frame, and hear what the agent says: it must never wait for us while we wait for it."""
        stream = self._stream
        stream.put(kind, data)
        while stream.waiting:
            frames.poll(stream)
            while (frame := stream.next()) is not None:
                self.listen(*frame)

    def _leave_out(self, line: str) -> None:
        self.warned = True
        self._warn(line)


def _time(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}"
