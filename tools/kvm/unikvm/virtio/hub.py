# SPDX-License-Identifier: GPL-2.0-only
"""A private network between the guests of one user: a directory with a datagram socket for each guest on it.

There is no server. Who is on the network is who has a socket in the directory; a frame goes to the socket that its
address was last seen behind, or to all. A guest whose process was killed is found out by the first frame to it. As on
any Ethernet a frame that the other end has no room for is lost.
"""

from __future__ import annotations

import errno
import os
import time
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket

from unikvm.errors import CannotRun
from unikvm.sys.runtime import MAX_NAME, directory, is_name
from unikvm.vhost.channel import BackendError
from unikvm.virtio.frames import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.virtio.frames import Frame

MTU = 9000
_LARGEST = MTU + HEADER + 4  # and a VLAN tag
_BATCH = 32  # datagrams that are read before others have their turn
_LOOK_SECONDS = 0.5  # between two looks into the directory
_MAX_LEARNED = 1024  # addresses: a guest may claim to be anybody
_GROUP = 1  # in the first byte of an address: of several


def check_name(name: str) -> None:
    """CannotRun where `name` is no name of a network."""
    if not is_name(name):
        raise CannotRun(f"--net hub={name}: no name of a network", hint=f"letters, digits, - and _, {MAX_NAME} at most")


def directory_of(name: str) -> str:
    """Where the network `name` is, made if need be. CannotRun where it is not ours alone."""
    check_name(name)
    return directory("hubs", name)


class Hub:
    """A place on the network in `directory`: the back end of a `Net`, and its line."""

    again = False

    def __init__(self, directory: str) -> None:
        self.name = f"the network {os.path.basename(directory)}"
        self._directory = directory
        self._path = f"{directory}/{os.getpid()}-{os.urandom(4).hex()}"
        self._sock = Socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        try:
            self._sock.bind(self._path)
        except OSError as error:
            self._sock.close()
            raise CannotRun(f"--net hub: {self._path}: {error.strerror}") from None
        self._sock.setblocking(False)
        self.fd = self._sock.fileno()
        self._others: list[str] = []
        self._looked = -_LOOK_SECONDS
        self._learned: dict[bytes, str] = {}
        self._slots = [memoryview(bytearray(_LARGEST + 1)) for _ in range(_BATCH)]  # a byte more shows what is too long
        self._frames: list[memoryview] = []

    # As a back end

    def why(self) -> str:
        return ""

    def stop(self) -> None:
        self.close()

    def close(self) -> None:
        if self._path:
            self._sock.close()
            self._unlink(self._path)
            self._path = ""

    # As a line

    def send(self, frames: Sequence[Frame]) -> int:
        """All of them, or they are lost."""
        for views, _ in frames:
            first = bytes(views[0][:6]) if len(views[0]) >= 6 else b"".join(views)[:6]
            known = "" if first[0] & _GROUP else self._learned.get(first, "")
            for path in [known] if known else self._everybody():
                self._send_to(path, views)
        return len(frames)

    def _send_to(self, path: str, views: Sequence[memoryview]) -> None:
        try:
            self._sock.sendmsg(views, (), MSG_DONTWAIT, path)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                self._forget(path)
            elif error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE):
                raise BackendError(error.strerror or str(error)) from None

    def _everybody(self) -> list[str]:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            try:
                found = [f"{self._directory}/{name}" for name in os.listdir(self._directory)]
            except OSError as error:
                raise BackendError(error.strerror or str(error)) from None
            self._others = [path for path in found if path != self._path]
        return list(self._others)

    def _forget(self, path: str) -> None:
        """Its process is no more."""
        self._unlink(path)
        self._others = [other for other in self._others if other != path]
        self._learned = {address: other for address, other in self._learned.items() if other != path}

    @staticmethod
    def _unlink(path: str) -> None:
        try:
            os.unlink(path)
        except OSError:
            pass  # another one was faster

    def receive(self) -> bool:
        """Read what is there, up to a batch, when `frame` has nothing more; False where nothing is."""
        for slot in self._slots:
            try:
                count, path = self._sock.recvfrom_into(slot)
            except BlockingIOError:
                break
            except OSError as error:
                raise BackendError(error.strerror or str(error)) from None
            if not HEADER <= count <= _LARGEST or not isinstance(path, str):
                continue
            frame = slot[:count]
            source = bytes(frame[6:12])
            if not source[0] & _GROUP and (source in self._learned or len(self._learned) < _MAX_LEARNED):
                self._learned[source] = path
            self._frames.append(frame)
        return bool(self._frames)

    def frame(self) -> memoryview | None:
        """The first frame that was received and not yet taken, or None. Valid until the next `receive`."""
        return self._frames[0] if self._frames else None

    def take(self, frame: memoryview) -> None:
        """Done with `frame`, which `frame()` gave."""
        del self._frames[0]
