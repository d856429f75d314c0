# SPDX-License-Identifier: GPL-2.0-only
"""AF_UNIX sockets from the C module: `socket` brings `selectors` and `enum` along, which no run needs."""

from __future__ import annotations

from _socket import AF_UNIX, SHUT_RDWR, SHUT_WR, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket
from _socket import socketpair as pair

__all__ = ["SHUT_RDWR", "SHUT_WR", "Socket", "accept", "pair", "prearranged"]


def accept(listener: Socket) -> int:
    """The next connection's descriptor. BlockingIOError where a non-blocking `listener` has none."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return int(fd)


def prearranged() -> tuple[Socket, Socket]:
    """(listening, connected): the first connection that the listening socket accepts is the second one.

    For programs that listen: hand them the first by number, and nobody can come before us. The name is an abstract one,
    so no file is left.
    """
    listener = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    client = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        listener.bind("")
        listener.listen(1)
        client.connect(listener.getsockname())
    except BaseException:
        listener.close()
        client.close()
        raise
    return listener, client
