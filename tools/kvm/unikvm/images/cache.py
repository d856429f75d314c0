# SPDX-License-Identifier: GPL-2.0-only
"""The cache: XDG_CACHE_HOME/unikvm. What is in it is complete: it is made beside and renamed when it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unikvm.errors import CannotRun

Say = Callable[[str], object]


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


@contextmanager
def locked(name: str, say: Say) -> Iterator[None]:
    """Hold the cache's lock `name`; `say` is told when another process has it."""
    import fcntl

    with open(entry(f"{name.replace('/', '_')}.lock"), "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another unikvm to finish {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def making(path: str) -> Iterator[str]:
    """A temporary directory beside `path` that becomes `path` at the end, or vanishes.

    A full disk is one clear error that names the cache.
    """
    import shutil
    import tempfile

    os.makedirs(os.path.dirname(path), exist_ok=True)
    work = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(path))
    try:
        yield work
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.chmod(work, 0o755)
        os.rename(work, path)
    except OSError as error:
        raise _explained(error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write(path: str, chunks: Iterator[bytes] | list[bytes]) -> None:
    """Write a file whole or not at all."""
    import tempfile

    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd, work = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.chmod(work, 0o644)
        os.rename(work, path)
    except BaseException as error:
        os.unlink(work)
        if isinstance(error, OSError):
            raise _explained(error) from error
        raise


def _explained(error: OSError) -> CannotRun:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotRun(f"no room in the cache {root()}", hint="remove what is in it, or set XDG_CACHE_HOME")
    return CannotRun(f"cannot write to the cache {root()}: {error.strerror}", hint="XDG_CACHE_HOME names another place")


def identity(path: str) -> str:
    """What changes when the file's content does, without reading it: size, modification time, inode."""
    status = os.stat(path)
    return f"{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def digest(*parts: str | bytes) -> str:
    """A short name for `parts` together."""
    import hashlib

    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]
