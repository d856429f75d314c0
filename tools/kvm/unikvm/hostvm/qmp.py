# SPDX-License-Identifier: GPL-2.0-only
"""A QMP client in 70 lines: QEMU's JSON monitor over a socket.

The qemu.qmp package would do, but it needs asyncio, whose import takes longer than the whole conversation here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

from unikvm.errors import UnikvmError

_CHUNK = 65536


class QmpError(UnikvmError):
    """QEMU refused a command, or its monitor is gone or silent."""


class Qmp:
    """One conversation. Not thread safe."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""

    def connect(self, timeout: float) -> None:
        """Take the greeting and leave the negotiation mode; `timeout` in seconds."""
        self._sock.settimeout(timeout)
        if "QMP" not in self._message():
            raise QmpError("QEMU's monitor did not greet")
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = 10.0,
    ) -> object:
        """Run one command, with descriptors passed along for `getfd`; its return value, or QmpError."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._sock.settimeout(timeout)
        data = json.dumps(request).encode() + b"\n"
        try:
            if fds:
                socket.send_fds(self._sock, [data], list(fds))
            else:
                self._sock.sendall(data)
        except OSError as error:
            raise QmpError(f"QEMU's monitor: {error}") from error
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                error_object = message["error"]
                text = error_object.get("desc", "?") if isinstance(error_object, dict) else "?"
                raise QmpError(f"QEMU: {command}: {text}")
            # Everything else is an event; nothing here depends on one.

    def _message(self) -> dict[str, object]:
        while b"\n" not in self._buffer:
            try:
                chunk = self._sock.recv(_CHUNK)
            except OSError as error:
                raise QmpError(f"QEMU's monitor: {error}") from error
            if not chunk:
                raise QmpError("QEMU's monitor closed")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise QmpError(f"QEMU's monitor said {line[:80]!r}") from None
        if not isinstance(message, dict):
            raise QmpError(f"QEMU's monitor said {line[:80]!r}")
        return message

    def close(self) -> None:
        self._sock.close()
