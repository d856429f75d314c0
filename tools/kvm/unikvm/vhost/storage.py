# SPDX-License-Identifier: GPL-2.0-only
"""qemu-storage-daemon, which knows the image formats: one image, served as a vhost-user-blk device."""

from __future__ import annotations

import os
import stat

from unikvm.errors import CannotRun
from unikvm.lean import Lock
from unikvm.sys.process import find_program
from unikvm.sys.unixsocket import SHUT_RDWR, pair
from unikvm.vhost.backend import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unikvm.sys.qmp import Qmp
    from unikvm.sys.unixsocket import Socket

BINARY = "qemu-storage-daemon"
MONITOR_SECONDS = 30.0  # for a command; a slow disk takes its time


def arguments(
    binary: str,
    path: str,
    *,
    kind: str,
    readonly: bool,
    writethrough: bool,
    queues: int,
    direct: bool,
    fd: int,
    monitor: int,
) -> list[str]:
    """The command line for the image `path` of format `kind`, the listening socket `fd`, and the socket `monitor`, over
    which it takes commands (QMP)."""
    import json

    cache = {"cache": {"direct": direct}, "read-only": readonly}
    file = {"driver": "file", "filename": os.path.abspath(path), "discard": "unmap", **cache}
    if stat.S_ISBLK(os.stat(path).st_mode):
        file["driver"] = "host_device"
    node = {"driver": kind, "node-name": "disk", "file": file, "discard": "unmap", **cache}
    address = {"type": "fd", "str": str(fd)}
    access = {"writable": not readonly, "writethrough": writethrough, "num-queues": queues}
    export = {"type": "vhost-user-blk", "id": "disk", "node-name": "disk", "addr": address, **access}
    control = ["--chardev", f"socket,id=monitor,fd={monitor},server=off", "--monitor", "monitor"]
    return [binary, "--blockdev", json.dumps(node), *control, "--export", json.dumps(export)]


class Storage(Program):
    """qemu-storage-daemon, with the other end of its monitor."""

    def __init__(self, name: str, argv: Callable[[int, int], Sequence[str]], *, again: bool) -> None:
        self._lock = Lock()  # one command at a time
        self._monitor: Socket | None = None
        self._qmp: Qmp | None = None
        super().__init__(name, lambda fd: argv(fd, self._extra[0]), again=again, ends_alone=False)

    def _start(self) -> None:
        monitor, theirs = pair()
        try:
            self._extra = [theirs.fileno()]
            super()._start()
        except BaseException:
            monitor.close()
            raise
        finally:
            theirs.close()
        self._monitor, self._qmp = monitor, None

    def grow(self, size: int) -> None:
        """Make the image `size` bytes. CannotRun in qemu-storage-daemon's words, and where there is none."""
        from unikvm.sys.qmp import Qmp, QmpError, QmpRefusal

        with self._lock:
            monitor = self._monitor
            if monitor is None:
                raise CannotRun(f"{self.name} takes no commands any more")
            try:
                if self._qmp is None:
                    self._qmp = Qmp(monitor)
                    self._qmp.connect(MONITOR_SECONDS)
                self._qmp.execute("block_resize", {"node-name": "disk", "size": size}, timeout=MONITOR_SECONDS)
            except QmpError as error:
                if not isinstance(error, QmpRefusal):
                    self._drop()
                raise CannotRun(f"{self.name}: {error.message}") from None

    def _drop(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()

    def stop(self) -> None:
        super().stop()
        monitor = self._monitor
        if monitor is not None:
            try:
                monitor.shutdown(SHUT_RDWR)  # the end of a command that is under way
            except OSError:
                pass  # closed in between, or the other end is
        with self._lock:
            self._drop()


def serve(
    path: str, *, kind: str, readonly: bool, writethrough: bool = False, queues: int = 1, direct: bool = False
) -> Storage:
    """Start qemu-storage-daemon for an image. CannotRun where either cannot be had.

    `writethrough`: what is written is in the image before the guest has the answer, which is slow. Only then (or where
    nothing is written) may it be started again after its end: it keeps where an image's blocks are in its memory until
    the guest flushes.
    """
    binary = find_program(BINARY)
    if not binary:
        raise CannotRun(f"a {kind} image needs {BINARY}, which is not on this host", hint="`make setup` installs it")
    if not os.access(path, os.R_OK if readonly else os.R_OK | os.W_OK):
        what = "read" if readonly else "read and write"
        raise CannotRun(f"cannot {what} disk image {path}", hint="does it exist? or add ,ro" if not readonly else "")
    return Storage(
        f"{BINARY} of {path}",
        lambda fd, monitor: arguments(
            binary,
            path,
            kind=kind,
            readonly=readonly,
            writethrough=writethrough,
            queues=queues,
            direct=direct,
            fd=fd,
            monitor=monitor,
        ),
        again=readonly or writethrough,
    )
