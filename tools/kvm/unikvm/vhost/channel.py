# SPDX-License-Identifier: GPL-2.0-only
"""A connection to a vhost-user back end: requests out, answers in. The back end is as hostile as the guest.

Everything that it sends passes `Channel.receive`, the one door: the request it answers, the flags, the size and the
number of descriptors have to be what was asked for, and all of it has to come in time.
"""

from __future__ import annotations

import os
import time
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_PEEK, SCM_RIGHTS, SOL_SOCKET

from unikvm.errors import UnikvmError
from unikvm.sys.unixsocket import Socket
from unikvm.vhost import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_SECONDS = 10.0  # from a request to the end of its answer; finishing what is in flight is part of some
MAX_FDS = 8
_FD_SPACE = CMSG_LEN(4 * MAX_FDS)


class BackendError(UnikvmError):
    """The back end is gone, silent, said no, or broke the protocol: this connection is of no use any more."""


class Channel:
    """Requests and their answers, one at a time: its user holds a lock. `name` is the back end's, for people."""

    def __init__(self, sock: Socket, name: str, *, seconds: float = ANSWER_SECONDS) -> None:
        self._socket = sock
        self._name = name
        self.seconds = seconds
        self.fd = sock.fileno()

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0) -> None:
        """Send a request. BackendError where the back end does not take it in time."""
        data = memoryview(messages.HEADER.pack(request, messages.VERSION | flags, len(payload)) + payload)
        numbers = b"".join(fd.to_bytes(4, "little") for fd in fds)
        ancillary = [(SOL_SOCKET, SCM_RIGHTS, numbers)] if fds else []
        self._socket.settimeout(self.seconds)
        try:
            while data:
                data = data[self._socket.sendmsg([data], ancillary) :]
                ancillary = []
        except OSError as error:
            raise self._error(request, _text(error)) from None

    def receive(self, request: int, size: int, *, fds: int = 0) -> tuple[bytes, tuple[int, ...]]:
        """The answer to `request`: a payload of `size` bytes, and `fds` descriptors, which are the caller's to close.

        BackendError for everything else.
        """
        got: list[int] = []
        end = time.monotonic() + self.seconds
        try:
            header = self._take(messages.HEADER.size, end, got)
            kind, flags, length = messages.HEADER.unpack(header)
            if kind != request or flags & messages.VERSION_MASK != messages.VERSION or not flags & messages.REPLY:
                raise BackendError(f"{self._name} answers {_name(request)} with {_name(kind)}, flags {flags:#x}")
            if length != size:
                raise BackendError(f"{self._name} answers {_name(request)} with {length} bytes instead of {size}")
            payload = self._take(size, end, got)
            if len(got) != fds:
                raise BackendError(f"{self._name} answers {_name(request)} with {len(got)} descriptors, not {fds}")
        except BaseException as error:
            for fd in got:
                os.close(fd)
            if isinstance(error, OSError):
                raise self._error(request, _text(error)) from None
            raise
        return payload, tuple(got)

    def _take(self, size: int, end: float, fds: list[int]) -> bytes:
        """Exactly `size` bytes; descriptors that come with them go into `fds`, which the caller closes."""
        parts = bytearray()
        while len(parts) < size:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(0, f"no complete answer within {self.seconds:g} s")
            self._socket.settimeout(left)
            data, ancillary, flags, _ = self._socket.recvmsg(size - len(parts), _FD_SPACE, MSG_CMSG_CLOEXEC)
            for level, kind, numbers in ancillary:
                if level == SOL_SOCKET and kind == SCM_RIGHTS:
                    whole = len(numbers) & ~3
                    fds += [int.from_bytes(numbers[at : at + 4], "little") for at in range(0, whole, 4)]
            if flags & MSG_CTRUNC or len(fds) > MAX_FDS:
                raise BackendError(f"{self._name} sends more descriptors than there is room for")
            if not data:
                raise ConnectionResetError(0, "it closed the connection")
            parts += data
        return bytes(parts)

    def broken(self) -> str:
        """Why nothing more is to be expected: the connection is closed, or has what nobody asked for. Else empty.

        For the event loop, between requests. Never waits: what woke the loop may have been taken as an answer.
        """
        self._socket.settimeout(0)  # with a time-out, recv would wait for that long whatever its flags say
        try:
            data = self._socket.recv(1, MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return ""
        except OSError as error:
            return _text(error)
        return "it sends what nobody asked for" if data else "it closed the connection"

    def close(self) -> None:
        self._socket.close()

    def _error(self, request: int, why: str) -> BackendError:
        return BackendError(f"{self._name} does not take part in {_name(request)}: {why}")


def _name(request: int) -> str:
    return messages.NAMES.get(request, f"request {request}")


def _text(error: OSError) -> str:
    if isinstance(error, TimeoutError) and not error.strerror:
        return "it does not answer in time"
    return error.strerror or str(error)
