# SPDX-License-Identifier: GPL-2.0-only
"""Frames on the connection of a session; the agent's end, and what each kind carries, is tools/kvm/guest/frames.h."""

from __future__ import annotations

import select
from struct import Struct

from unikvm import wire
from unikvm.errors import CANNOT_RUN, UnikvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket

PROTOCOL = "1"  # frames.h: AGENT_PROTOCOL
WINDOW = 256 << 10  # bytes of stdin that may be on their way
MAX_DATA = 65536  # of one frame
DATA, EOF, REQUEST, WINSIZE, SIGNAL, HELLO, STARTED, OUT, ERR, CREDIT, EXIT, ERROR, WARNING, ENTRY, HOLE, UP, DONE = (
    b"DERWSHPOeCXFwNLUZ"
)

_HEAD = Struct("<I")
_RECEIVE = 256 << 10


class Lost(UnikvmError):
    """The connection ended in the middle of a session: the guest, its agent or its monitor is gone."""

    outcome = CANNOT_RUN


class Refused(UnikvmError):
    """The agent says that it cannot be done, or not go on."""

    outcome = CANNOT_RUN


class Stream:
    """The client's end of a session, on a connected socket, which it owns. A context manager."""

    def __init__(self, sock: Socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._in = bytearray()
        self._out = bytearray()
        self._greeted = False

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def waiting(self) -> int:
        """How many bytes could not be sent yet."""
        return len(self._out)

    def put(self, kind: int, data: bytes | memoryview = b"") -> None:
        """Queue a frame and send what can be sent at once."""
        self._out += _HEAD.pack(kind << 24 | len(data))
        self._out += data
        self.flush()

    def put_words(self, kind: int, *words: str | bytes) -> None:
        self.put(kind, wire.encode(*words)[:-1])

    def flush(self) -> None:
        """Send what the socket takes. Lost where there is nobody."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            # What it said before it went explains more than this.
            self._out.clear()
            if not self._readable():
                raise Lost(f"the connection to the guest is lost: {error.strerror}") from None

    def _readable(self) -> bool:
        return bool(select.select([self.sock], [], [], 0)[0])

    def fill(self) -> None:
        """Read what has arrived. Lost at the end of the stream."""
        try:
            data = self.sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            raise Lost(f"the connection to the guest is lost: {error.strerror}") from None
        if not data:
            raise Lost("the guest ended the connection")
        self._in += data

    def next(self) -> tuple[int, bytes] | None:
        """The next frame that is here. Refused where the agent says so, UnikvmError for another protocol."""
        if len(self._in) < _HEAD.size:
            return None
        (word,) = _HEAD.unpack_from(self._in)
        end = _HEAD.size + (word & 0xFF_FFFF)
        if len(self._in) < end:
            return None
        kind, data = word >> 24, bytes(self._in[_HEAD.size : end])
        del self._in[:end]
        if not self._greeted:
            self._greet(kind, data)
            return self.next()
        if kind == ERROR:
            raise Refused(f"in the guest: {text(data)}")
        return kind, data

    def _greet(self, kind: int, data: bytes) -> None:
        self._greeted = True
        if kind != HELLO or data != PROTOCOL.encode():
            raise UnikvmError(
                f"the guest's agent speaks protocol {text(data)[:20]}, not {PROTOCOL}",
                hint="start the guest anew: it has the init of another build",
                outcome=CANNOT_RUN,
            )

    def wait(self) -> tuple[int, bytes]:
        """The next frame, when it comes; meanwhile what waits is sent."""
        while (frame := self.next()) is None:
            poll(self)
        return frame

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def poll(stream: Stream) -> None:
    """Wait until something can be received, or sent of what waits, and do it."""
    poller = select.poll()
    poller.register(stream, select.POLLIN | (select.POLLOUT if stream.waiting else 0))
    for _fd, events in poller.poll():
        if events & select.POLLOUT:
            stream.flush()
        if events & ~select.POLLOUT:
            stream.fill()


def text(data: bytes) -> str:
    """What the guest says, for a line on the terminal: nothing that moves the cursor."""
    plain = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in plain)
