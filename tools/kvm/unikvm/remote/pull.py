# SPDX-License-Identifier: GPL-2.0-only
"""Files out of a guest: entries become what they describe. Its mirror is guest/copyin.c.

The guest is hostile: a name is one component, directories are entered by descriptor and never through a symbolic
link, and no file gets set-user-ID bits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unikvm import wire
from unikvm.errors import CannotRun, UnikvmError
from unikvm.remote import frames
from unikvm.remote.frames import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = 256
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def pull(
    stream: Stream,
    source: str,
    target: str,
    *,
    into: bool = False,
    warn: Callable[[str], object],
    progress: Callable[[int, int], object] = lambda _done, _size: None,
) -> bool:
    """Copy the guest's `source` to `target` on this machine; the rest as `push`."""
    name = os.path.basename(source.rstrip("/")) or "."
    place = _Place(target, "." if name == ".." else name, into)
    try:
        stream.put_words(frames.REQUEST, "get", source)
        copy = _Copy(place, warn, progress)
        while not copy.done:
            copy.take(*stream.wait())
        return not copy.warned
    finally:
        os.close(place.directory)


class _Place:
    """Where the copy goes: a directory, and the name in it of what is copied."""

    directory_only = False  # what does not exist has to become a directory

    def __init__(self, target: str, name: str, into: bool) -> None:
        try:
            self.directory = os.open(target, _DIRECTORY)
            self.name, self.path = name, os.path.join(target, name)
            return
        except OSError as error:
            if into or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise CannotRun(f"{target}: {error.strerror}") from None
        self.directory_only = target.endswith("/")
        parent, self.name = os.path.split(target.rstrip("/"))
        self.path = target
        try:
            self.directory = os.open(parent or ".", _DIRECTORY)
        except OSError as error:
            raise CannotRun(f"{parent}: {error.strerror}") from None


class _Level:
    """A directory that is being filled. `fd` -1: left out. What we made ourselves gets mode and time at its end."""

    def __init__(self, fd: int, path: str, mode: int, time: int, fresh: bool) -> None:
        self.fd = fd
        self.path = path
        self.mode = mode
        self.time = time
        self.fresh = fresh


class _File:
    """A file that is being written; `fd` -1: left out."""

    def __init__(self, fd: int, path: str, mode: int, time: int, size: int) -> None:
        self.fd = fd
        self.path = path
        self.mode = mode
        self.time = time
        self.size = size
        self.plain = fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)


class _Copy:
    def __init__(self, place: _Place, warn: Callable[[str], object], progress: Callable[[int, int], object]) -> None:
        self._place = place
        self._warn = warn
        self._progress = progress
        self._levels: list[_Level] = []
        self._file: _File | None = None
        self._entered = False
        self.warned = False
        self.done = False

    def take(self, kind: int, data: bytes) -> None:
        """One frame of the agent."""
        if kind == frames.ENTRY and self._file is None:
            self._entry(data)
        elif kind == frames.DATA and self._file is not None:
            self._bytes(self._file, data)
        elif kind == frames.HOLE and self._file is not None:
            self._hole(self._file, data)
        elif kind == frames.EOF and self._file is not None:
            file, self._file = self._file, None
            self._end(file)
        elif kind == frames.UP and self._levels and self._file is None:
            self._up(self._levels.pop())
        elif kind == frames.WARNING:
            self._leave_out(f"in the guest: {frames.text(data)}")
        elif kind == frames.DONE and not self._levels and self._file is None:
            self.done = True
        else:
            raise UnikvmError(f"the guest's agent sends a malformed copy (frame {kind})")

    def _entry(self, data: bytes) -> None:
        try:
            kind, name, third, *rest = wire.decode(data)
            if kind == "link":
                mode, time = 0, _nanoseconds(rest[0])
            else:
                mode, time = int(third, 8) & 0o777, _nanoseconds(rest[0])
            size = int(rest[1]) if kind == "file" else 0
        except (ValueError, IndexError):
            raise UnikvmError("the guest's agent sends a malformed entry") from None
        if not self._levels:
            if self._entered:
                raise UnikvmError("the guest's agent sends more than it was asked for")
            self._entered = True
            directory, name, path = self._place.directory, self._place.name, self._place.path
        else:
            if name in ("", ".", "..") or "/" in name or "\0" in name or len(self._levels) > MAX_DEPTH:
                raise UnikvmError(f"the guest's agent sends a name that is none: {frames.text(name.encode())[:80]}")
            level = self._levels[-1]
            directory, path = level.fd, os.path.join(level.path, name)
        if kind == "dir":
            self._levels.append(self._enter(directory, name, path, mode, time))
        elif kind == "file":
            self._file = self._create(directory, name, path, mode, time, size)
        elif kind == "link":
            self._link(directory, name, path, third, time)

    def _enter(self, directory: int, name: str, path: str, mode: int, time: int) -> _Level:
        fd, fresh = -1, False
        if directory >= 0:
            try:
                try:
                    os.mkdir(name, 0o700, dir_fd=directory)
                    fresh = True
                except FileExistsError:
                    pass
                fd = os.open(name, _DIRECTORY | self._follow(), dir_fd=directory)
            except OSError as error:
                self._leave_out(f"{path}: {error.strerror}")
        return _Level(fd, path, mode, time, fresh)

    def _create(self, directory: int, name: str, path: str, mode: int, time: int, size: int) -> _File:
        fd = -1
        if directory >= 0:
            try:
                flags = _WRITE | self._follow()
                if self._place.directory_only and not self._levels:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                try:
                    fd = os.open(name, flags, 0o600, dir_fd=directory)
                except OSError as error:
                    if error.errno != errno.ELOOP or not self._levels:
                        raise
                    os.unlink(name, dir_fd=directory)
                    fd = os.open(name, flags, 0o600, dir_fd=directory)
            except OSError as error:
                self._leave_out(f"{path}: {error.strerror}")
        self._progress(0, size)
        file = _File(fd, path, mode, time, size)
        if file.plain:
            os.ftruncate(fd, 0)
        return file

    def _link(self, directory: int, name: str, path: str, to: str, time: int) -> None:
        if directory < 0:
            return
        try:
            try:
                os.symlink(to, name, dir_fd=directory)
            except FileExistsError:
                os.unlink(name, dir_fd=directory)
                os.symlink(to, name, dir_fd=directory)
            os.utime(name, ns=(time, time), dir_fd=directory, follow_symlinks=False)
        except (OSError, ValueError) as error:
            self._leave_out(f"{path}: {getattr(error, 'strerror', None) or error}")

    def _follow(self) -> int:
        """What the user named may be a link; below it the guest says what there is."""
        return os.O_NOFOLLOW if self._levels else 0

    def _bytes(self, file: _File, data: bytes) -> None:
        self._progress(len(data), -1)
        if file.fd < 0:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file.fd, view) :]
        except OSError as error:
            raise CannotRun(f"{file.path}: {error.strerror}") from None

    def _hole(self, file: _File, data: bytes) -> None:
        length = int(data) if data.isdigit() else 0
        self._progress(length, -1)
        if file.fd < 0:
            return
        try:
            if file.plain:
                os.lseek(file.fd, length, os.SEEK_CUR)
                return
        except OSError as error:
            raise CannotRun(f"{file.path}: {error.strerror}") from None
        while length > 0:
            self._bytes(file, bytes(min(length, frames.MAX_DATA)))
            length -= frames.MAX_DATA

    def _end(self, file: _File) -> None:
        if file.fd < 0:
            return
        try:
            if file.plain:
                os.ftruncate(file.fd, os.lseek(file.fd, 0, os.SEEK_CUR))  # a hole at the end
                os.fchmod(file.fd, file.mode)
                os.utime(file.fd, ns=(file.time, file.time))
            os.close(file.fd)
        except OSError as error:
            raise CannotRun(f"{file.path}: {error.strerror}") from None

    def _up(self, level: _Level) -> None:
        if level.fd < 0:
            return
        try:
            if level.fresh:
                os.fchmod(level.fd, level.mode)
                os.utime(level.fd, ns=(level.time, level.time))
        except OSError as error:
            self._leave_out(f"{level.path}: {error.strerror}")
        with contextlib.suppress(OSError):
            os.close(level.fd)

    def _leave_out(self, line: str) -> None:
        self.warned = True
        self._warn(line)


def _nanoseconds(text: str) -> int:
    seconds, _, fraction = text.partition(".")
    if len(fraction) != 9 or not fraction.isdigit():
        raise ValueError(text)
    return int(seconds) * 10**9 + int(fraction)
