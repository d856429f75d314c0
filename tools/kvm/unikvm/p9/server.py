# SPDX-License-Identifier: GPL-2.0-only
"""Serves one connection: 9P2000.L requests in, answers out, in their order. The client is a guest, and hostile.

What is malformed ends the connection, and so the server; what is refused is an errno. Extended attributes and locks of
the host are not served: EOPNOTSUPP, and locks that always succeed (one guest has the directory).
"""

from __future__ import annotations

import errno
import os
import stat

from unikvm.p9 import messages as m
from unikvm.p9.tree import File, Numbers, Refused, check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Callable
    from typing import Any

NOBODY = 0xFFFF_FFFF  # NONUNAME
LOCKED = bytes(1)  # P9_LOCK_SUCCESS
UNLOCKED = 2  # F_UNLCK
NO_FID = 0xFFFF_FFFF
MAX_FIDS = 1 << 20


class Server:
    """The directory `root`, for one client. `reply` gives the answer to a message."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fids: dict[int, File] = {}
        self._numbers = Numbers()
        self.room = m.MIN_MESSAGE  # bytes of a message; Tversion says how many
        self._table: dict[int, tuple[str, Callable[..., bytes]]] = {
            m.STATFS: ("w", self._statfs),
            m.LOPEN: ("ww", self._open),
            m.LCREATE: ("wswww", self._create),
            m.SYMLINK: ("wssw", self._symlink),
            m.MKNOD: ("wswwww", self._mknod),
            m.READLINK: ("w", self._readlink),
            m.GETATTR: ("wq", self._getattr),
            m.SETATTR: ("wwwwwqqqqq", self._setattr),
            m.READDIR: ("wqw", self._readdir),
            m.FSYNC: ("ww", self._fsync),
            m.LOCK: ("wbwqqws", lambda fid, *_: self._known(fid, LOCKED)),
            m.GETLOCK: ("wbqqws", self._getlock),
            m.LINK: ("wws", self._link),
            m.MKDIR: ("wsww", self._mkdir),
            m.RENAMEAT: ("wsws", self._renameat),
            m.UNLINKAT: ("wsw", self._unlinkat),
            m.START: ("ws", self._version),
            m.ATTACH: ("wwssw", self._attach),
            m.FLUSH: ("h", lambda _tag: b""),  # what it is about was answered before
            m.READ: ("wqw", self._read),
            m.CLUNK: ("w", self._clunk),
            m.REMOVE: ("w", self._remove),
        }

    def reply(self, kind: int, tag: int, body: memoryview) -> bytes:
        """The whole answer. Malformed where the client does not speak the protocol."""
        try:
            if kind == m.WALK:
                answer = self._walk(body)
            elif kind == m.WRITE:
                answer = self._write(body)
            elif kind in self._table:
                layout, serve = self._table[kind]
                answer = serve(*m.fields(layout, body))
            else:
                raise Refused(errno.EOPNOTSUPP)
        except OSError as error:
            return m.refusal(tag, error.errno or errno.EIO)
        except (ValueError, OverflowError):
            return m.refusal(tag, errno.EINVAL)
        return m.message(kind + 1, tag, answer)

    def close(self) -> None:
        for file in self._fids.values():
            file.close()
        self._fids.clear()

    def _file(self, fid: int) -> File:
        file = self._fids.get(fid)
        if file is None:
            raise Refused(errno.EBADF)
        return file

    def _known(self, fid: int, answer: bytes) -> bytes:
        self._file(fid)
        return answer

    def _keep(self, fid: int, file: File) -> None:
        if fid in self._fids or fid == NO_FID or len(self._fids) >= MAX_FIDS:
            file.close()
            raise Refused(errno.EBADF if len(self._fids) < MAX_FIDS else errno.ENFILE)
        self._fids[fid] = file

    def _qid(self, status: os.stat_result) -> bytes:
        kind = m.QID_FILE
        if stat.S_ISDIR(status.st_mode):
            kind = m.QID_DIR
        elif stat.S_ISLNK(status.st_mode):
            kind = m.QID_LINK
        version = (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFF_FFFF
        return m.QID.pack(kind, version, self._numbers.path(status.st_dev, status.st_ino))

    # The session

    def _version(self, room: int, version: bytes) -> bytes:
        self.close()
        self.room = min(room, m.MAX_MESSAGE)
        if self.room < m.MIN_MESSAGE:
            raise Refused(errno.EMSGSIZE)
        return self.room.to_bytes(4, "little") + m.string(m.VERSION if version == m.VERSION else b"unknown")

    def _attach(self, fid: int, _afid: int, _user: bytes, _tree: bytes, uid: int) -> bytes:
        file = File(os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), 0 if uid == NOBODY else uid)
        self._keep(fid, file)
        return self._qid(os.fstat(file.fd))

    def _walk(self, body: memoryview) -> bytes:
        count = int.from_bytes(body[8:10], "little")
        if count > m.MAX_WALK:
            raise m.Malformed("a walk of too many names")
        fid, new, _, *names = m.fields("wwh" + "s" * count, body)
        start = self._file(fid)
        file, seen = start.walk(names)
        if file is not None:
            if fid == new:
                del self._fids[fid]
                start.close()
            self._keep(new, file)
        return len(seen).to_bytes(2, "little") + b"".join(map(self._qid, seen))

    def _clunk(self, fid: int) -> bytes:
        self._file(fid).close()
        del self._fids[fid]
        return b""

    def _remove(self, fid: int) -> bytes:
        """By name there is unlinkat; a fid has none here."""
        self._clunk(fid)
        raise Refused(errno.EOPNOTSUPP)

    # Files

    def _statfs(self, fid: int) -> bytes:
        now = os.statvfs(self._file(fid).fd)
        blocks = (now.f_blocks, now.f_bfree, now.f_bavail, now.f_files, now.f_ffree)
        return m.STATISTICS.pack(0x0102_1997, now.f_frsize, *blocks, now.f_fsid & (1 << 64) - 1, now.f_namemax)

    def _getattr(self, fid: int, _mask: int) -> bytes:
        now = os.fstat(self._file(fid).fd)
        owner = (now.st_mode, now.st_uid, now.st_gid, now.st_nlink)
        sizes = (now.st_rdev, now.st_size, now.st_blksize, now.st_blocks)
        times = [part for at in (now.st_atime_ns, now.st_mtime_ns, now.st_ctime_ns) for part in divmod(at, 10**9)]
        signed = [part & (1 << 64) - 1 for part in times]
        return m.ATTRIBUTES.pack(m.GETATTR_BASIC, self._qid(now), *owner, *sizes, *signed, 0, 0, 0, 0)

    def _setattr(self, fid: int, valid: int, mode: int, uid: int, gid: int, size: int, *times: int) -> bytes:
        seconds = [at - (1 << 64) if at >> 63 else at for at in times[::2]]
        given = (seconds[0] * 10**9 + times[1], seconds[1] * 10**9 + times[3])
        self._file(fid).set(valid, mode, uid, gid, size, given)
        return b""

    def _open(self, fid: int, flags: int) -> bytes:
        file = self._file(fid)
        file.open(flags)
        return self._qid(os.fstat(file.fd)) + bytes(4)  # iounit: as large as a message

    def _create(self, fid: int, name: bytes, flags: int, mode: int, gid: int) -> bytes:
        file = self._file(fid)
        if file.open_fd >= 0:
            raise Refused(errno.EBUSY)
        file.create(name, flags, mode, gid)
        return self._qid(os.fstat(file.fd)) + bytes(4)

    def _read(self, fid: int, offset: int, count: int) -> bytes:
        data = os.pread(self._file(fid).opened(), min(count, self.room - m.ROOM), offset)
        return len(data).to_bytes(4, "little") + data

    def _write(self, body: memoryview) -> bytes:
        fid, offset, count = m.fields("wqw", body[:16])
        data = body[16:]
        if len(data) != count:
            raise m.Malformed("a write of another size than it says")
        done = os.pwrite(self._file(fid).opened(), data, offset)
        return done.to_bytes(4, "little")

    def _fsync(self, fid: int, data_only: int) -> bytes:
        fd = self._file(fid).opened()
        (os.fdatasync if data_only else os.fsync)(fd)
        return b""

    def _readlink(self, fid: int) -> bytes:
        return m.string(os.readlink(b"", dir_fd=self._file(fid).fd))

    def _getlock(self, fid: int, _kind: int, start: int, length: int, process: int, client: bytes) -> bytes:
        fields = bytes((UNLOCKED,)) + start.to_bytes(8, "little") + length.to_bytes(8, "little")
        return self._known(fid, fields + process.to_bytes(4, "little") + m.string(client))

    # Directories

    def _readdir(self, fid: int, offset: int, count: int) -> bytes:
        """Entries from number `offset` on: each a qid, the offset behind it, a type and a name."""
        file = self._file(fid)
        file.opened()
        if not offset:
            file.list()
        device = os.fstat(file.fd).st_dev
        answer = bytearray(4)
        limit = min(count, self.room - m.ROOM)
        for number, (name, inode, kind) in enumerate(file.entries[offset:], offset + 1):
            entry = m.QID.pack(kind, 0, self._numbers.path(device, inode))
            entry += number.to_bytes(8, "little") + bytes((_DTYPES[kind],)) + m.string(name)
            if len(answer) - 4 + len(entry) > limit:
                break
            answer += entry
        answer[:4] = (len(answer) - 4).to_bytes(4, "little")
        return bytes(answer)

    def _made(self, directory: File, name: bytes, gid: int) -> bytes:
        return self._qid(directory.made(name, gid))

    def _mkdir(self, fid: int, name: bytes, mode: int, gid: int) -> bytes:
        directory = self._file(fid)
        os.mkdir(check_name(name), mode & 0o7777, dir_fd=directory.fd)
        return self._made(directory, name, gid)

    def _symlink(self, fid: int, name: bytes, target: bytes, gid: int) -> bytes:
        directory = self._file(fid)
        os.symlink(target, check_name(name), dir_fd=directory.fd)
        return self._made(directory, name, gid)

    def _mknod(self, fid: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> bytes:
        directory = self._file(fid)
        if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and (major or minor):
            raise Refused(errno.EPERM)  # the host's devices are not the guest's to name
        os.mknod(check_name(name), mode, os.makedev(major, minor), dir_fd=directory.fd)
        return self._made(directory, name, gid)

    def _link(self, directory: int, fid: int, name: bytes) -> bytes:
        os.link(self._file(fid).link, check_name(name), dst_dir_fd=self._file(directory).fd, follow_symlinks=True)
        return b""

    def _renameat(self, fid: int, name: bytes, new_fid: int, new_name: bytes) -> bytes:
        old, new = self._file(fid).fd, self._file(new_fid).fd
        os.rename(check_name(name), check_name(new_name), src_dir_fd=old, dst_dir_fd=new)
        return b""

    def _unlinkat(self, fid: int, name: bytes, flags: int) -> bytes:
        remove: Any = os.rmdir if flags & _AT_REMOVEDIR else os.unlink
        remove(check_name(name), dir_fd=self._file(fid).fd)
        return b""


_AT_REMOVEDIR = 0x200
_DTYPES = {m.QID_DIR: 4, m.QID_LINK: 10, m.QID_FILE: 8}  # DT_DIR, DT_LNK, DT_REG


def serve(sock: Socket, server: Server) -> None:
    """Until the client is gone. Malformed where it breaks the protocol."""
    buffer = bytearray(m.MAX_MESSAGE)
    while True:
        head = memoryview(buffer)[: m.HEADER.size]
        if not _fill(sock, head):
            return
        size, kind, tag = m.HEADER.unpack(head)
        if not m.HEADER.size <= size <= max(server.room, m.MIN_MESSAGE):
            raise m.Malformed(f"a message of {size} bytes")
        body = memoryview(buffer)[: size - m.HEADER.size]
        if not _fill(sock, body):
            return
        sock.sendall(server.reply(kind, tag, body))


def _fill(sock: Socket, view: memoryview) -> bool:
    """Receive all of `view`; False where the connection ends."""
    while view:
        count = sock.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True
