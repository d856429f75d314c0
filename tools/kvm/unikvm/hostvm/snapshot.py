# SPDX-License-Identifier: GPL-2.0-only
"""Booted host VMs that are kept: the memory as a sparse file, the devices as QEMU's migration state.

A snapshot is taken when init is ready and before a file server is plugged in (virtiofs and 9p block migration). Each
run gets its own copy of the memory, in a memfd. A snapshot's name is a hash of everything that went into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unikvm.errors import UnikvmError
from unikvm.sys.process import deadline

if TYPE_CHECKING:
    from unikvm.hostvm.launch import Qemu

_FORMAT = "1"
_KEPT = 4  # snapshots of different hosts, about 130 MiB each
_CHUNK = 8 << 20
_CAPABILITY: dict[str, object] = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_MIGRATION_SECONDS = 20.0


class SnapshotError(UnikvmError):
    """A snapshot cannot be made or used. The host is booted instead."""


def cache_dir() -> str:
    """Where snapshots live: $XDG_CACHE_HOME/unikvm/hosts."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "unikvm", "hosts")


def identity(path: str) -> str:
    """What tells a file's content from another's without reading it."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}:missing"
    return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def key(parts: Sequence[str]) -> str:
    """The name of the snapshot that all of `parts` went into."""
    return hashlib.sha256("\0".join((_FORMAT, *parts)).encode()).hexdigest()[:32]


def copy_sparse(source: int, target: int) -> int:
    """Copy the data of `source` and leave its holes; the bytes copied. Both have the same size already."""
    size = os.fstat(source).st_size
    at = copied = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            count = os.sendfile(target, source, at, min(end - at, _CHUNK))
            if not count:
                raise SnapshotError("the memory file became shorter while it was copied")
            at += count
            copied += count
    return copied


class Snapshot:
    """One kept host, under `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def exists(self) -> bool:
        return os.path.exists(f"{self.path}/meta")

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def load_ram(self, ram: int) -> None:
        """Fill the memfd `ram`. SnapshotError where the kept file does not fit its description."""
        try:
            with open(f"{self.path}/meta") as file:
                meta = json.load(file)
            with open(f"{self.path}/ram", "rb", buffering=0) as kept:
                if os.fstat(kept.fileno()).st_size != os.fstat(ram).st_size:
                    raise SnapshotError("its memory has another size")
                copied = copy_sparse(kept.fileno(), ram)
            with open(f"{self.path}/state", "rb") as file:
                state = hashlib.sha256(file.read()).hexdigest()
        except (OSError, ValueError) as error:
            raise SnapshotError(f"it cannot be read: {error}") from error
        if not isinstance(meta, dict) or (meta.get("data"), meta.get("state")) != (copied, state):
            raise SnapshotError("it is damaged")
        with contextlib.suppress(OSError):
            os.utime(self.path)  # the least recently used ones go first

    def resume(self, qemu: Qemu) -> None:
        """Let a QEMU that waits for a state run from this one."""
        with open(f"{self.path}/state", "rb") as state:
            qemu.qmp.execute("migrate-set-capabilities", _CAPABILITY)
            qemu.qmp.execute("getfd", {"fdname": "state"}, fds=[state.fileno()])
            qemu.qmp.execute("migrate-incoming", {"uri": "fd:state"})
            # It was stopped when it was saved, and so it is when it has arrived.
            _until(qemu, "query-status", ("paused", "running"), ("internal-error",))
            qemu.qmp.execute("cont")


def save(qemu: Qemu, root: str, name: str) -> int:
    """Keep the host that runs in `qemu` as `name` below `root`, and let it go on. Bytes of memory kept.

    SnapshotError where it cannot be kept (a full disk, say); the host runs on all the same.
    """
    work = os.path.join(root, f".{name}.{os.getpid()}")
    try:
        os.makedirs(work, mode=0o700)
        copied = _write(qemu, work)
        final = os.path.join(root, name)
        with contextlib.suppress(OSError):  # somebody else's, made meanwhile, is as good
            os.rename(work, final)
        return copied
    except OSError as error:
        raise SnapshotError(f"{error.strerror or error} in {root}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        collect(root)


def _write(qemu: Qemu, work: str) -> int:
    qemu.qmp.execute("stop")
    try:
        with open(f"{work}/state", "w+b", buffering=0) as state:
            qemu.qmp.execute("migrate-set-capabilities", _CAPABILITY)
            qemu.qmp.execute("getfd", {"fdname": "state"}, fds=[state.fileno()])
            qemu.qmp.execute("migrate", {"uri": "fd:state"})
            _until(qemu, "query-migrate", ("completed",), ("failed", "cancelled"))
            state.seek(0)
            digest = hashlib.sha256(state.read()).hexdigest()
        with open(f"{work}/ram", "wb", buffering=0) as ram:
            os.ftruncate(ram.fileno(), os.fstat(qemu.ram).st_size)
            copied = copy_sparse(qemu.ram, ram.fileno())
            os.fsync(ram.fileno())
        with open(f"{work}/meta", "w") as file:
            json.dump({"data": copied, "state": digest}, file)
    finally:
        qemu.qmp.execute("cont")
    return copied


def _until(qemu: Qemu, query: str, good: Sequence[str], bad: Sequence[str]) -> None:
    left = deadline(_MIGRATION_SECONDS)
    while True:
        answer = qemu.qmp.execute(query)
        status = answer.get("status", "") if isinstance(answer, dict) else ""
        if status in good:
            return
        if status in bad or not left():
            raise SnapshotError(f"QEMU's migration: {status or 'no answer'}")
        if qemu.process.poll() is not None:
            raise SnapshotError(f"QEMU ended: {qemu.process.log_text()[-200:]}")
        time.sleep(0.005)


def _entries(root: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            yield from list(entries)
    except OSError:
        return


def collect(root: str) -> None:
    """Remove what dead runs left half-made, and all but the last used snapshots."""
    kept: list[tuple[float, str]] = []
    for entry in _entries(root):
        if entry.name.startswith("."):
            pid = entry.name.rpartition(".")[2]
            if not pid.isdigit() or not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.is_dir():
            with contextlib.suppress(OSError):
                kept.append((entry.stat().st_mtime, entry.path))
    for _when, path in sorted(kept, reverse=True)[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
