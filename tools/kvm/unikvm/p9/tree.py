# SPDX-License-Identifier: GPL-2.0-only
"""The files that are served, and the one door into them.

A file is known by a descriptor of its own (O_PATH | O_NOFOLLOW), reached from its directory's by one name at a time,
never by a path. So nothing outside the exported directory can be named: not by `..` (no name), not through symbolic
links (not followed), not by moving directories about in between.
"""

from __future__ import annotations

import errno
import os
import stat

from unikvm.p9 import messages as m

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Of the client's flags: what is about the file. Where an append goes is the client's to say, who may hold it back.
_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_DSYNC | os.O_SYNC | os.O_NOATIME | os.O_DIRECTORY
_ALWAYS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DEVICE_BITS = 48  # above them in a qid's path is which file system an inode number is of


class Refused(OSError):
    """A request that is answered with `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


def check_name(name: bytes) -> bytes:
    """One component of a path, as it is."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused(errno.EINVAL)
    return name


class Numbers:
    """Numbers for inodes, unique over all file systems below the exported directory."""

    def __init__(self) -> None:
        self._devices: dict[int, int] = {}
        self._large: dict[tuple[int, int], int] = {}

    def path(self, device: int, inode: int) -> int:
        index = self._devices.setdefault(device, len(self._devices))
        if inode >> _DEVICE_BITS or index >= 0xFFFF:
            return 0xFFFF << _DEVICE_BITS | self._large.setdefault((device, inode), len(self._large))
        return index << _DEVICE_BITS | inode


class File:
    """What a fid stands for: a place in the tree, and once it is open the open file. `uid` is whose the fid is."""

    def __init__(self, fd: int, uid: int) -> None:
        self.fd = fd
        self.uid = uid
        self.open_fd = -1
        self.entries: list[tuple[bytes, int, int]] = []  # of an open directory: name, inode number, type

    @property
    def link(self) -> str:
        """A path that leads to this very file, whatever has become of its name."""
        return f"/proc/self/fd/{self.fd}"

    def opened(self) -> int:
        if self.open_fd < 0:
            raise Refused(errno.EBADF)
        return self.open_fd

    def walk(self, names: list[bytes]) -> tuple[File | None, list[os.stat_result]]:
        """Down by `names`: the file, or None where not all of them were found, and what was met on the way. Raises
        where the first one is not there."""
        seen: list[os.stat_result] = []
        fd = os.dup(self.fd)
        for name in names:
            try:
                below = os.open(check_name(name), _PATH, dir_fd=fd)
            except OSError:
                os.close(fd)
                if not seen:
                    raise
                return None, seen
            os.close(fd)
            fd = below
            seen.append(os.fstat(fd))
        return File(fd, self.uid), seen

    def open(self, flags: int) -> None:
        if self.open_fd >= 0:
            raise Refused(errno.EBUSY)
        kind = os.fstat(self.fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise Refused(errno.ELOOP if stat.S_ISLNK(kind) else errno.ENXIO)  # others are the guest's own
        # Through the link, which is followed to the file itself; what is there is no link.
        self.open_fd = os.open(self.link, flags & _FLAGS | _ALWAYS)

    def create(self, name: bytes, flags: int, mode: int, gid: int) -> None:
        """Make a regular file in this directory and become it, open."""
        wanted = flags & _FLAGS | _ALWAYS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            opened = os.open(check_name(name), wanted, mode & 0o7777, dir_fd=self.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            there = File(os.open(name, _PATH, dir_fd=self.fd), self.uid)
            try:
                there.open(flags)  # as what it is: the name may be a device's
            except BaseException:
                there.close()
                raise
            os.close(self.fd)
            self.fd, self.open_fd = there.fd, there.open_fd
            return
        try:
            fd = os.open(f"/proc/self/fd/{opened}", os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            os.close(opened)
            raise
        os.close(self.fd)
        self.fd, self.open_fd = fd, opened
        self.own(gid)

    def own(self, gid: int) -> None:
        """What was made belongs to whoever made it, where this process may give it away."""
        try:
            os.chown(self.link, self.uid, gid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):  # no root, or a user name space without that user
                raise

    def made(self, name: bytes, gid: int) -> os.stat_result:
        """Give what was just made in this directory to the client's user."""
        made = File(os.open(name, _PATH, dir_fd=self.fd), self.uid)
        try:
            made.own(gid)
            return os.fstat(made.fd)
        finally:
            made.close()

    def set(self, valid: int, mode: int, uid: int, gid: int, size: int, times: tuple[int, int]) -> None:
        """chmod, chown, truncate and utimens, as `valid` says; `times` in nanoseconds."""
        now = os.fstat(self.fd)
        if stat.S_ISLNK(now.st_mode) and valid & (m.SET_MODE | m.SET_SIZE):
            raise Refused(errno.EOPNOTSUPP)
        if valid & (m.SET_UID | m.SET_GID):
            os.chown(self.link, uid if valid & m.SET_UID else -1, gid if valid & m.SET_GID else -1)
        if valid & m.SET_MODE:
            os.chmod(self.link, mode & 0o7777)
        if valid & m.SET_SIZE:
            if not stat.S_ISREG(now.st_mode):
                raise Refused(errno.EINVAL)
            os.truncate(self.open_fd if self._writable() else self.link, size)
        if valid & (m.SET_ATIME | m.SET_MTIME):
            import time

            this = time.time_ns()
            atime = times[0] if valid & m.SET_ATIME_GIVEN else this if valid & m.SET_ATIME else now.st_atime_ns
            mtime = times[1] if valid & m.SET_MTIME_GIVEN else this if valid & m.SET_MTIME else now.st_mtime_ns
            os.utime(self.link, ns=(atime, mtime))

    def _writable(self) -> bool:
        import fcntl

        return self.open_fd >= 0 and bool(fcntl.fcntl(self.open_fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR))

    def list(self) -> None:
        """Read the open directory anew into `entries`."""
        here = os.fstat(self.fd)
        self.entries = [(b".", here.st_ino, m.QID_DIR), (b"..", here.st_ino, m.QID_DIR)]
        with os.scandir(self.opened()) as found:
            for entry in found:
                is_dir = entry.is_dir(follow_symlinks=False)
                kind = m.QID_DIR if is_dir else m.QID_LINK if entry.is_symlink() else m.QID_FILE
                self.entries.append((os.fsencode(entry.name), entry.inode(), kind))

    def close(self) -> None:
        if self.open_fd >= 0:
            os.close(self.open_fd)
        os.close(self.fd)
        self.fd = self.open_fd = -1
