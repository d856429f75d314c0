# SPDX-License-Identifier: GPL-2.0-only
"""Ethernet frames over a socket that keeps messages apart (SOCK_SEQPACKET), one frame each. The one door for what the
other end sends.
"""

from __future__ import annotations

from unikvm.vhost.channel import BackendError
from unikvm.virtio.frames import HEADER, MAX_FRAME, MAX_PARTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.sys.unixsocket import Socket
    from unikvm.virtio.frames import Frame

_BUFFER = 256 << 10
_BATCH = 64  # messages that are read before others have their turn


class PacketLine:
    """The connection `sock`, which it owns. Not for several threads at once. BackendError: the other end is lost."""

    def __init__(self, sock: Socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.fd = sock.fileno()
        self._buffer = memoryview(bytearray(_BUFFER))
        self._frames: list[memoryview] = []

    def close(self) -> None:
        self._sock.close()

    def send(self, frames: Sequence[Frame]) -> int:
        """Send from the first on; how many went. Fewer than all: the socket is full, wait until it can be written."""
        for sent, (views, _) in enumerate(frames):
            try:
                self._sock.sendmsg(views if len(views) <= MAX_PARTS else (b"".join(views),))
            except BlockingIOError:
                return sent
            except OSError as error:
                raise BackendError(error.strerror or str(error)) from None
        return len(frames)

    def receive(self) -> bool:
        """Read what is there, up to a batch, when `frame` has nothing more; False where nothing is."""
        end = 0
        while len(self._frames) < _BATCH and _BUFFER - end > MAX_FRAME:  # a byte more shows what is too long
            try:
                count = self._sock.recv_into(self._buffer[end : end + MAX_FRAME + 1])
            except BlockingIOError:
                break
            except OSError as error:
                raise BackendError(error.strerror or str(error)) from None
            if not count:
                raise BackendError("it closed the connection")
            if not HEADER <= count <= MAX_FRAME:
                raise BackendError(f"a frame of {count} bytes")
            self._frames.append(self._buffer[end : end + count])
            end += count
        self._frames.reverse()
        return bool(self._frames)

    def frame(self) -> memoryview | None:
        """The first frame that was received and not yet taken, or None. Valid until the next `receive`."""
        return self._frames[-1] if self._frames else None

    def take(self, frame: memoryview) -> None:
        """Done with `frame`, which `frame()` gave."""
        self._frames.pop()
