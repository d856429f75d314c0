# SPDX-License-Identifier: GPL-2.0-only
"""Many byte streams over one: how the control of a guest in a host VM gets out, over a virtio-serial port.

A frame is a kind, a channel and a length (little-endian), and for DATA the bytes. Either end sends at most WINDOW bytes
on a channel before the other has passed them on and says so (CREDIT), so a slow stream holds up no other.
"""

from __future__ import annotations

import os
from struct import Struct

from unikvm.sys.stream import CHUNK, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.sys.eventloop import EventLoop

WINDOW = 4 * CHUNK
MAX_CHANNELS = 64
_HEADER = Struct("<BxHI")
_OPEN, _DATA, _END, _RESET, _CREDIT = range(1, 6)


class Mux:
    """One end, on `loop`; owns `fd`. `on_open(fd)` gets our end of a stream that the other side opened, to own;
    `on_lost()` is told when the other side is gone, or breaks the protocol, and all streams are closed.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        on_open: Callable[[int], object] | None = None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = loop
        self._on_open = on_open
        self._on_lost = on_lost
        self._channels: dict[int, _Channel] = {}
        self._next = 0
        self._in = bytearray()
        self._line = Stream(loop, fd, room=WINDOW)
        self._line.on_data = self._received
        self._line.on_end = self._line.on_lost = self.close

    def open(self, fd: int) -> None:
        """Carry the stream `fd`, which it owns, to the other side; one too many is closed."""
        if len(self._channels) >= MAX_CHANNELS or self._line.fd < 0:
            os.close(fd)
            return
        while self._next in self._channels:
            self._next = (self._next + 1) & 0xFFFF
        number, self._next = self._next, (self._next + 1) & 0xFFFF
        self.send(_OPEN, number)
        self._add(number, fd)

    def _add(self, number: int, fd: int) -> None:
        self._channels[number] = _Channel(self, number, Stream(self._loop, fd, room=WINDOW))

    def send(self, kind: int, number: int, length: int = 0, data: bytes = b"") -> None:
        self._line.write(_HEADER.pack(kind, number, length) + data)

    def forget(self, number: int) -> None:
        self._channels.pop(number, None)

    def close(self) -> None:
        """End every stream and the line. Twice is once."""
        for channel in list(self._channels.values()):
            channel.close()
        self._channels.clear()
        if self._line.fd >= 0:
            self._line.close()
            self._on_lost()

    def _received(self, data: bytes) -> None:
        self._in += data
        self._line.allow(len(data))
        at = 0
        while len(self._in) - at >= _HEADER.size:
            kind, number, length = _HEADER.unpack_from(self._in, at)
            end = at + _HEADER.size + (length if kind == _DATA else 0)
            if not _OPEN <= kind <= _CREDIT or (kind == _DATA and length > WINDOW):
                self.close()
                return
            if end > len(self._in):
                break
            self._frame(kind, number, length, bytes(self._in[at + _HEADER.size : end]))
            at = end
        del self._in[:at]

    def _frame(self, kind: int, number: int, length: int, data: bytes) -> None:
        channel = self._channels.get(number)
        if kind == _OPEN:
            self._accept(number)
        elif channel is not None:
            if kind == _DATA:
                channel.stream.write(data)
            elif kind == _END:
                channel.peer_ended()
            elif kind == _RESET:
                self.forget(number)
                channel.close()
            else:
                channel.stream.allow(length)

    def _accept(self, number: int) -> None:
        if self._on_open is None or number in self._channels or len(self._channels) >= MAX_CHANNELS:
            self.send(_RESET, number)
            return
        from unikvm.sys.unixsocket import pair

        ours, theirs = pair()
        self._add(number, ours.detach())
        self._on_open(theirs.detach())


class _Channel:
    """A stream and what of it is on the line. What it may read is what the other side has room for."""

    def __init__(self, mux: Mux, number: int, stream: Stream) -> None:
        self.stream = stream
        self._mux = mux
        self._number = number
        self._owed = 0  # bytes passed on since the last CREDIT
        self._over = 0  # directions that have ended
        stream.on_data = lambda data: mux.send(_DATA, number, len(data), data)
        stream.on_end = self._ended
        stream.on_lost = self._lost
        stream.on_written = self._written

    def _written(self, count: int) -> None:
        self._owed += count
        if self._owed >= WINDOW // 2:
            self._mux.send(_CREDIT, self._number, self._owed)
            self._owed = 0
        self._close_when_done()

    def _ended(self) -> None:
        self._mux.send(_END, self._number)
        self._over += 1
        self._close_when_done()

    def peer_ended(self) -> None:
        self._over += 1
        self.stream.finish()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._over >= 2 and not self.stream.pending:
            self._mux.forget(self._number)
            self.stream.close()

    def _lost(self) -> None:
        self._mux.send(_RESET, self._number)
        self._mux.forget(self._number)

    def close(self) -> None:
        self.stream.close()
