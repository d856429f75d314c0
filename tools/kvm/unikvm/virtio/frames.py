# SPDX-License-Identifier: GPL-2.0-only
"""Ethernet frames over a stream socket, each after its length in 4 bytes, big-endian: what QEMU's stream sockets speak,
and passt. The one door for what the other end sends.
"""

from __future__ import annotations

from unikvm.vhost.channel import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.sys.unixsocket import Socket

    Frame = tuple[Sequence[memoryview], int]  # the parts, and their bytes in all

HEADER = 14  # of Ethernet: two addresses and a type
MAX_FRAME = 65535 + HEADER + 4  # and a VLAN tag
_LENGTH = 4
_BUFFER = 256 << 10
# What Linux queues in one piece (SKB_MAX_ALLOC and 32 KiB): the socket takes it whole or not at all. passt before 2024
# loses its place in the stream when it finds half a frame twice.
BATCH = 32 << 10
MAX_PARTS = 1024  # IOV_MAX


class FrameStream:
    """The connection `sock`, which it owns. Not for several threads at once. BackendError: the other end is lost."""

    def __init__(self, sock: Socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.fd = sock.fileno()
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = 0  # what was received and not taken is [start, end)
        self._end = 0
        self._tail = b""  # of a batch that went out in part

    def close(self) -> None:
        self._sock.close()

    def send(self, frames: Sequence[Frame]) -> int:
        """Send from the first on; how many went. Fewer than all: the socket is full, wait until it can be written."""
        sent = 0
        while self._flush() and sent < len(frames):
            parts: list[bytes | memoryview] = []
            size = 0
            count = sent
            while count < len(frames):
                views, length = frames[count]
                if parts and (size + _LENGTH + length > BATCH or len(parts) + 1 + len(views) > MAX_PARTS):
                    break
                if len(views) >= MAX_PARTS:
                    views = (memoryview(b"".join(views)),)
                parts.append(length.to_bytes(_LENGTH, "big"))
                parts += views
                size += _LENGTH + length
                count += 1
            done = self._write(parts)
            if not done:
                break
            if done < size:
                self._tail = b"".join(parts)[done:]
            sent = count
        return sent

    def _flush(self) -> bool:
        """Send what is left of a batch; whether that is all."""
        if self._tail:
            self._tail = self._tail[self._write([self._tail]) :]
        return not self._tail

    def _write(self, parts: Sequence[bytes | memoryview]) -> int:
        try:
            return self._sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise BackendError(error.strerror or str(error)) from None

    def receive(self) -> bool:
        """Read what is there, once, when `frame` has nothing more; False where nothing is."""
        left = self._end - self._start
        if left and self._start:
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, left
        try:
            count = self._sock.recv_into(self._buffer[left:])
        except BlockingIOError:
            return False
        except OSError as error:
            raise BackendError(error.strerror or str(error)) from None
        if not count:
            raise BackendError("it closed the connection")
        self._end += count
        return True

    def frame(self) -> memoryview | None:
        """The first frame that was received and not yet taken, or None. Valid until the next `receive`."""
        first = self._start + _LENGTH
        if first > self._end:
            return None
        length = int.from_bytes(self._buffer[self._start : first], "big")
        if not HEADER <= length <= MAX_FRAME:
            raise BackendError(f"a frame of {length} bytes")
        return self._buffer[first : first + length] if first + length <= self._end else None

    def take(self, frame: memoryview) -> None:
        """Done with `frame`, which `frame()` gave."""
        self._start += _LENGTH + len(frame)
