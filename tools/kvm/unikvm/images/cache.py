# SPDX-License-Identifier: GPL-2.0-only
"""The cache: XDG_CACHE_HOME/unikvm. What is in it is complete: it is made beside and renamed when it is whole.

Every run of a Linux guest imports this, so what only making something takes is imported by what makes it.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun

try:  # hashlib loads OpenSSL: five times the start-up of all the rest here
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import TextIOWrapper

    Say = Callable[[str], object]

UNFINISHED = ".new-"  # prefix of what is being made
ABANDONED_AFTER = 60  # seconds; by then its maker has locked it, or is gone


def root() -> str:
    """The cache's directory, made when there is none."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(home, "unikvm")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"no cache at {path}: {error.strerror}", hint="XDG_CACHE_HOME names another place") from error
    return path


def entry(*parts: str) -> str:
    """The path of something in the cache."""
    return os.path.join(root(), *parts)


class locked:  # a class, and no generator: contextlib would be most of what importing this costs
    """Hold the cache's lock `name`; `say` is told when another process has it."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say
        self._file: TextIOWrapper | None = None

    def __enter__(self) -> None:
        import fcntl

        try:
            self._file = open(entry(f"{self._name.replace('/', '_')}.lock"), "w", encoding="ascii")
        except OSError as error:
            raise explained(error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._say(f"waiting for another unikvm to finish {self._name}")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_failure: object) -> None:
        if self._file:
            self._file.close()


class making:
    """A temporary directory beside `path` that becomes `path` at the end, or vanishes. Hold a lock meanwhile.

    A full disk is one clear error that names the cache.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._work = ""
        self._lock = -1

    def __enter__(self) -> str:
        import fcntl
        import tempfile

        parent = os.path.dirname(self._path)
        try:
            os.makedirs(parent, exist_ok=True)
            sweep(parent)
            self._work = tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)
            self._lock = os.open(self._work, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise explained(error) from error
        return self._work

    def __exit__(self, _kind: object, failure: BaseException | None, _where: object) -> None:
        import shutil

        try:
            if failure is None:
                if os.path.isdir(self._path):
                    shutil.rmtree(self._path)
                os.chmod(self._work, 0o755)
                os.rename(self._work, self._path)
        except OSError as error:
            failure = error
        shutil.rmtree(self._work, ignore_errors=True)
        os.close(self._lock)
        if isinstance(failure, OSError):
            raise explained(failure) from failure


def write(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file whole or not at all."""
    import fcntl
    import tempfile

    parent = os.path.dirname(path)
    try:
        os.makedirs(parent, exist_ok=True)
        sweep(parent)
        fd, work = tempfile.mkstemp(prefix=UNFINISHED, dir=parent)
    except OSError as error:
        raise explained(error) from error
    try:
        with os.fdopen(fd, "wb") as file:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for chunk in chunks:
                file.write(chunk)
            os.fchmod(fd, 0o644)
            file.flush()
            os.fsync(fd)  # machines with a kernel under test crash: a name must not come before its content
            os.rename(work, path)
    except BaseException as error:
        os.unlink(work)
        if isinstance(error, OSError):
            raise explained(error) from error
        raise


def sweep(folder: str) -> None:
    """Remove what makers that were killed have left in `folder`: those alive hold a lock on theirs."""
    import time

    for name in os.listdir(folder):
        if name.startswith(UNFINISHED):
            path = os.path.join(folder, name)
            try:
                if time.time() - os.stat(path).st_ctime > ABANDONED_AFTER and not _is_held(path):
                    _remove(path)
            except OSError:
                continue  # its maker has just renamed it


def _is_held(path: str) -> bool:
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _remove(path: str) -> None:
    import shutil

    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def used(path: str) -> None:
    """Mark a file as used now, for `keep_newest`."""
    try:
        os.utime(path)
    except OSError:
        pass  # somebody else's cache, which may be read


def keep_newest(folder: str, count: int) -> None:
    """Remove all files of `folder` but the `count` that were used last: each build of a kernel leaves one."""
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if not name.startswith(UNFINISHED)]
    try:
        files = sorted(filter(os.path.isfile, paths), key=os.path.getmtime, reverse=True)
        for path in files[count:]:
            os.unlink(path)
    except OSError:
        pass  # another process is at it


def explained(error: OSError) -> CannotRun:
    """A failure to write as one line that names the cache, or else what it is about."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_room()
    if error.filename and not os.path.abspath(os.fsdecode(error.filename)).startswith(os.path.abspath(root())):
        return CannotRun(f"{error.filename}: {error.strerror}")
    return CannotRun(f"cannot write to the cache {root()}: {error.strerror}", hint="XDG_CACHE_HOME names another place")


def no_room() -> CannotRun:
    """The disk is full: how much of it is the cache's."""
    size = 0
    for folder, _, names in os.walk(root()):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue
    disk = os.statvfs(root())
    return CannotRun(
        f"no room in the cache {root()}: it holds {size >> 20} MiB, {disk.f_bavail * disk.f_frsize >> 20} MiB are free",
        hint="remove what is in it, or set XDG_CACHE_HOME",
    )


def identity(path: str) -> str:
    """What changes when the file's content does, without reading it: size, modification time, inode."""
    status = os.stat(path)
    return f"{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def digest(*parts: str | bytes) -> str:
    """A short name for `parts` together."""
    total = blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()
