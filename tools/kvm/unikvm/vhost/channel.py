# SPDX-License-Identifier: GPL-2.0-only
"""The connections to a vhost-user back end: our requests and its answers, and where it has such, its own requests and
our answers. The back end is as hostile as the guest.

Everything that it sends passes `Inbox.take`, the one door: what a message is, its flags and its size have to be what
its reader allows, before anything is made of it. An answer has to come in time, and with its descriptors alone.
"""

from __future__ import annotations

import os
import time
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_PEEK, SCM_RIGHTS, SOL_SOCKET

from unikvm.errors import UnikvmError
from unikvm.lean import Lock
from unikvm.record import Record
from unikvm.sys.unixsocket import Socket, pair
from unikvm.vhost import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ANSWER_SECONDS = 10.0  # from a request to the end of its answer; finishing what is in flight is part of some
MAX_FDS = 8
AT_ONCE = 16  # requests of the back end that are looked at before others have their turn
_FD_SPACE = CMSG_LEN(4 * MAX_FDS)


class BackendError(UnikvmError):
    """The back end is gone, silent, said no, or broke the protocol: this connection is of no use any more."""


class Message(Record):
    """One whole message. Its descriptors are the taker's to close."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...]


class Inbox:
    """Puts together what a back end sends on `sock`, for its one reader. `name` is the back end's, for people."""

    def __init__(self, sock: Socket, name: str) -> None:
        self._socket = sock
        self._name = name
        self._parts = bytearray()
        self._fds: list[int] = []

    def take(self, refused: Callable[[int, int, int], str]) -> Message | None:
        """Read once, waiting as the socket's time-out says: a whole message, or None where there is more to come.

        `refused` says why a message with that request, those flags and so many bytes cannot be; empty where it can.
        OSError where nothing could be read, BackendError for everything else; nothing can be taken after that.
        """
        if len(self._parts) < messages.HEADER.size:
            self._read(messages.HEADER.size)
            if len(self._parts) < messages.HEADER.size:
                return None
            header: tuple[int, int, int] = messages.HEADER.unpack(self._parts)
            request, flags, size = header
            why = refused(request, flags, size)
            if why:
                raise BackendError(f"{self._name} {why}")
        else:
            request, flags, size = messages.HEADER.unpack_from(self._parts)
            self._read(messages.HEADER.size + size)
        if len(self._parts) < messages.HEADER.size + size:
            return None
        message = Message(request, flags, bytes(self._parts[messages.HEADER.size :]), tuple(self._fds))
        self._parts.clear()
        self._fds.clear()
        return message

    def _read(self, size: int) -> None:
        """More of the message, which has `size` bytes so far as is known."""
        data, ancillary, flags, _ = self._socket.recvmsg(size - len(self._parts), _FD_SPACE, MSG_CMSG_CLOEXEC)
        for level, kind, numbers in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                whole = len(numbers) & ~3
                self._fds += [int.from_bytes(numbers[at : at + 4], "little") for at in range(0, whole, 4)]
        if flags & MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise BackendError(f"{self._name} sends more descriptors than there is room for")
        if not data:
            raise ConnectionResetError(0, "it closed the connection")
        self._parts += data

    def drop(self) -> None:
        """Close the descriptors of a message that is not complete."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


class Channel:
    """Requests and their answers, one at a time: its user holds a lock. `name` is the back end's, for people."""

    def __init__(self, sock: Socket, name: str, *, seconds: float = ANSWER_SECONDS) -> None:
        self._socket = sock
        self._name = name
        self._inbox = Inbox(sock, name)
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
        end = time.monotonic() + self.seconds
        try:
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(0, f"no complete answer within {self.seconds:g} s")
                self._socket.settimeout(left)
                message = self._take(request, size, fds)
                if message is not None:
                    return message.payload, message.fds
        except OSError as error:
            raise self._error(request, _text(error)) from None

    def poll(self, request: int, size: int) -> bytes | None:
        """What `receive` would give, or None where it is not there yet: this never waits."""
        self._socket.settimeout(0)
        try:
            while (message := self._take(request, size, 0)) is None:
                pass
            return message.payload
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._error(request, _text(error)) from None

    def _take(self, request: int, size: int, fds: int) -> Message | None:
        """One look for the answer to `request`."""

        def refused(kind: int, flags: int, length: int) -> str:
            if kind != request or flags & messages.VERSION_MASK != messages.VERSION or not flags & messages.REPLY:
                return f"answers {_name(request)} with {_name(kind)}, flags {flags:#x}"
            return f"answers {_name(request)} with {length} bytes instead of {size}" if length != size else ""

        message = self._inbox.take(refused)
        if message is not None and len(message.fds) != fds:
            for fd in message.fds:
                os.close(fd)
            count = len(message.fds)
            raise BackendError(f"{self._name} answers {_name(request)} with {count} descriptors, not {fds}")
        return message

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
        self._inbox.drop()
        self._socket.close()

    def _error(self, request: int, why: str) -> BackendError:
        return BackendError(f"{self._name} does not take part in {_name(request)}: {why}")


class Requests:
    """The back end's own requests, on a connection that is made here; `theirs` is its end, to be handed over.

    A back end may wait for an answer while whoever holds its device's lock waits for the back end: so `serve` is for
    the event loop and without that lock. It never waits. `close` may come from any thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._socket, self.theirs = pair()
        self._socket.settimeout(0)
        self._inbox = Inbox(self._socket, name)
        self._lock = Lock()
        self.fd = self._socket.fileno()
        self.ended = False  # nothing comes any more, which a back end may do without

    def serve(self) -> bool:
        """Answer what has come, and say whether the configuration is a new one. BackendError where it makes no sense.

        A device's configuration is all that a back end may speak of here. Everything else is refused, and its
        descriptors are closed.
        """
        changed = False
        with self._lock:
            try:
                for _ in range(AT_ONCE):
                    message = self._inbox.take(self._refused)
                    if message is not None:
                        changed |= self._answer(message)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.ended = True
        return changed

    @staticmethod
    def _refused(request: int, flags: int, size: int) -> str:
        if flags & messages.VERSION_MASK != messages.VERSION or flags & messages.REPLY:
            return f"sends request {request} with flags {flags:#x}"
        return f"sends request {request} with {size} bytes" if size > messages.MAX_BACKEND_PAYLOAD else ""

    def _answer(self, message: Message) -> bool:
        for fd in message.fds:
            os.close(fd)
        known = message.request == messages.BACKEND_CONFIG_CHANGE_MSG and not message.payload
        if message.flags & messages.NEED_REPLY:
            answer = messages.U64.pack(0 if known else 1)
            header = messages.HEADER.pack(message.request, messages.VERSION | messages.REPLY, len(answer))
            try:
                sent = self._socket.send(header + answer)
            except BlockingIOError:
                sent = 0
            if sent < len(header + answer):
                raise BackendError(f"{self._name} does not take the answers to its requests")
        return known

    def close(self) -> None:
        with self._lock:
            self._inbox.drop()
            self._socket.close()
            self.theirs.close()
            self.ended = True


def _name(request: int) -> str:
    return messages.NAMES.get(request, f"request {request}")


def _text(error: OSError) -> str:
    if isinstance(error, TimeoutError) and not error.strerror:
        return "it does not answer in time"
    return error.strerror or str(error)
