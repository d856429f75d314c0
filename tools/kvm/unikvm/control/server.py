# SPDX-License-Identifier: GPL-2.0-only
"""The end of a running guest that other processes talk to: one JSON line a request, one a reply.

    {"execute": "NAME", "arguments": {...}}   →   {"return": ...} or {"error": {"class": "...", "desc": "..."}}

A command that returns a `Bytes` turns the connection into a byte stream after its reply. Who may connect is the
socket's directory's business: it is the user's alone.
"""

from __future__ import annotations

import os

from unikvm.errors import UnikvmError
from unikvm.sys.stream import Stream, splice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unikvm.sys.eventloop import EventLoop

    Reply = Callable[[object], None]
    Function = Callable[[dict[str, Any]], object]

MAX_LINE = 1 << 20


class Bytes:
    """What a command returns to go on as a byte stream: the descriptor at its other end, to own."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Later:
    """What a command returns when its answer comes later: `start(reply, fail)` begins it, on the loop's thread, where
    one of the two is called, once: with what the command returns, or with an error.
    """

    def __init__(self, start: Callable[[Reply, Callable[[UnikvmError], None]], object]) -> None:
        self.start = start


class Server:
    """Commands by name, for the connections it is given; on `loop`, whose thread runs the commands."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._commands: dict[str, Function] = {}
        self._connections: set[_Connection] = set()

    def command(self, name: str, function: Function) -> None:
        """Answer `name` with what `function(arguments)` returns, a thing that JSON can hold; UnikvmError is the other
        answer. ValueError and TypeError of wrong arguments are told as such."""
        self._commands[name] = function

    def serve(self, fd: int) -> None:
        """Serve a connection, which it owns. On the loop's thread."""
        self._connections.add(_Connection(self, self._loop, fd))

    def execute(self, name: str, arguments: dict[str, Any]) -> object:
        """Run a command. UnikvmError where it fails, or there is none."""
        function = self._commands.get(name)
        if function is None:
            raise UnikvmError(f"no command {name!r}", hint=f"one of {', '.join(sorted(self._commands))}")
        try:
            return function(arguments)
        except (ValueError, TypeError, KeyError) as error:
            raise UnikvmError(f"{name}: {type(error).__name__}: {error}") from None

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections):
            connection.close()


class _Connection:
    """Requests of one client, one after the other."""

    def __init__(self, server: Server, loop: EventLoop, fd: int) -> None:
        self._server = server
        self._loop = loop
        self._in = bytearray()
        self._busy = False
        self._stream = Stream(loop, fd, room=MAX_LINE)
        self._stream.on_data = self._received
        self._stream.on_end = self._stream.on_lost = self.close

    def _received(self, data: bytes) -> None:
        self._in += data
        self._next()

    def _next(self) -> None:
        """Take the next request, unless one is under way."""
        while not self._busy and b"\n" in self._in and self._stream.fd >= 0:
            line, _, rest = self._in.partition(b"\n")
            self._in = rest
            self._stream.allow(len(line) + 1)
            self._take(bytes(line))
        if len(self._in) >= MAX_LINE:
            self._fail(UnikvmError("a request of more than 1 MiB"))
            self.close()

    def _take(self, line: bytes) -> None:
        import json

        try:
            request = json.loads(line)
            name, arguments = request["execute"], request.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError("a name and an object of arguments")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._fail(UnikvmError(f"not a request: {error}"))
            return
        try:
            result = self._server.execute(name, arguments)
        except UnikvmError as error:
            self._fail(error)
            return
        if isinstance(result, Bytes):
            self._become_stream(result.fd)
        elif isinstance(result, Later):
            self._busy = True
            result.start(lambda value: self._answer(value), lambda error: self._answer(None, error))
        else:
            self._send({"return": result})

    def _answer(self, value: object, error: UnikvmError | None = None) -> None:
        self._busy = False
        if self._stream.fd < 0:  # the client did not wait
            if isinstance(value, Bytes):
                os.close(value.fd)
            return
        if error is not None:
            self._fail(error)
        elif isinstance(value, Bytes):
            self._become_stream(value.fd)
            return
        else:
            self._send({"return": value})
        self._next()

    def _fail(self, error: UnikvmError) -> None:
        self._send({"error": {"class": type(error).__name__, "desc": str(error)}})

    def _send(self, reply: object) -> None:
        import json

        if self._stream.fd >= 0:
            self._stream.write(json.dumps(reply).encode() + b"\n")

    def _become_stream(self, other: int) -> None:
        """The reply is short, and the client waits for it before it sends: nothing is pending after it."""
        self._send({"return": {}})
        early = bytes(self._in)
        self._server.forget(self)
        mine = self._stream.detach() if self._stream.fd >= 0 else -1
        if mine < 0 or self._stream.pending or early:
            os.close(other)
            if mine >= 0:
                os.close(mine)
            return
        splice(self._loop, mine, other)

    def close(self) -> None:
        self._stream.close()
        self._server.forget(self)
