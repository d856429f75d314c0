# SPDX-License-Identifier: GPL-2.0-only
"""A small QMP client: QEMU's JSON monitor over a socket.

The qemu.qmp package would do, but it needs asyncio, whose import takes longer than the whole conversation here.
"""

from __future__ import annotations

import json
import time
from _socket import SCM_RIGHTS, SOL_SOCKET
from collections.abc import Sequence

from unikvm.errors import UnikvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.sys.unixsocket import Socket

_CHUNK = 65536
_MOST = 1 << 20  # bytes of a message


class QmpError(UnikvmError):
    """QEMU refused a command, or its monitor is gone or silent: then nothing more can be asked."""


class QmpRefusal(QmpError):
    """QEMU refused a command, and takes others."""


class Qmp:
    """One conversation. Not thread safe."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._buffer = b""

    def connect(self, timeout: float) -> None:
        """Take the greeting and leave the negotiation mode; `timeout` in seconds."""
        if "QMP" not in self._message(time.monotonic() + timeout):
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
        deadline = time.monotonic() + timeout
        self._sock.settimeout(timeout)
        data = json.dumps(request).encode() + b"\n"
        try:
            if fds:
                numbers = b"".join(fd.to_bytes(4, "little") for fd in fds)
                data = data[self._sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, numbers)]) :]
            self._sock.sendall(data)
        except OSError as error:
            raise QmpError(f"QEMU's monitor: {error}") from error
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                error_object = message["error"]
                text = error_object.get("desc", "?") if isinstance(error_object, dict) else "?"
                raise QmpRefusal(f"QEMU: {command}: {text}")
            # Everything else is an event; nothing here depends on one.

    def _message(self, deadline: float) -> dict[str, object]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MOST:
                raise QmpError("QEMU's monitor does not come to an end")
            try:
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
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
