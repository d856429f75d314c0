# SPDX-License-Identifier: GPL-2.0-only
"""AF_VSOCK sockets: between this host and its guests, by their numbers (CIDs) and ports."""

from __future__ import annotations

import errno
from _socket import AF_VSOCK, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket

from unikvm.uapi.vhost import VMADDR_CID_ANY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Listener(Protocol):
        """Where guests dial."""

        def fileno(self) -> int: ...

        def accept(self) -> tuple[int, int, int]:
            """(descriptor, the CID that it comes from, the port there); BlockingIOError where nobody waits."""
            ...


BACKLOG = 16


class VsockListener:
    """A port of this host that guests dial; OSError where sockets of this kind are not to be had."""

    def __init__(self) -> None:
        self._sock = Socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC)
        self._sock.setblocking(False)

    def bind(self, port: int) -> bool:
        """Listen there; False where somebody else does."""
        try:
            self._sock.bind((VMADDR_CID_ANY, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._sock.listen(BACKLOG)
        return True

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[int, int, int]:
        fd, (cid, port) = self._sock._accept()  # type: ignore[attr-defined]
        return int(fd), int(cid), int(port)

    def close(self) -> None:
        self._sock.close()
