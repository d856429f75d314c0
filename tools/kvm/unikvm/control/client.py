# SPDX-License-Identifier: GPL-2.0-only
"""Asks running guests: the other end of `server`."""

from __future__ import annotations

import json
from _socket import MSG_PEEK
from typing import TYPE_CHECKING

from unikvm.control.names import connect, running
from unikvm.errors import CannotRun

if TYPE_CHECKING:
    from unikvm.sys.unixsocket import Socket

SECONDS = 60.0  # a guest in a host VM on a busy machine is slow, and hot-plug waits for the guest's kernel


def choose(name: str | None) -> str:
    """`name`, or without one the only guest that runs. CannotRun where it is not the only one."""
    if name:
        return name
    names = running()
    if len(names) == 1:
        return names[0]
    if not names:
        raise CannotRun("no guest runs that could be reached", hint="`unikvm run -n NAME` starts one")
    raise CannotRun("several guests run: which one?", hint=", ".join(names))


def call(name: str, command: str, *, seconds: float = SECONDS, **arguments: object) -> object:
    """The guest's answer to `command`. CannotRun where there is no such guest, and where it says no."""
    sock = connect(name)
    try:
        return _ask(sock, name, command, seconds, arguments)
    finally:
        sock.close()


def stream(name: str, command: str, *, seconds: float = SECONDS, **arguments: object) -> Socket:
    """A connection that `command` turned into a byte stream; blocking."""
    sock = connect(name)
    try:
        _ask(sock, name, command, seconds, arguments)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _ask(sock: Socket, name: str, command: str, seconds: float, arguments: dict[str, object]) -> object:
    line = bytearray()
    sock.settimeout(seconds)
    try:
        sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while not line.endswith(b"\n"):
            # Looked at first: what follows the reply belongs to the stream.
            data = sock.recv(1 << 16, MSG_PEEK)
            if not data:
                raise CannotRun(f"the guest {name} ended before it answered")
            length = data.find(b"\n") + 1 or len(data)
            line += sock.recv(length)
    except TimeoutError:
        raise CannotRun(f"the guest {name} does not answer within {seconds:g} s") from None
    except OSError as error:
        raise CannotRun(f"the guest {name} is lost: {error.strerror}") from None
    reply = json.loads(line)
    if "error" in reply:
        raise CannotRun(reply["error"]["desc"])
    return reply["return"]
