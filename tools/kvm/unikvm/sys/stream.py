# SPDX-License-Identifier: GPL-2.0-only
"""A descriptor that carries bytes both ways on an event loop and never blocks. A slow reader slows the writer down."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.sys.eventloop import EventLoop

CHUNK = 65536


class Stream:
    """Owns `fd`. Its user sets the callbacks and the room; all of it on the loop's thread.

    `on_data(data)`: bytes came, at most `room` of them, which shrinks by that and is given back by `allow`.
    `on_end()`: the other end sends no more. `on_lost()`: it is gone, and the stream closed.
    `on_written(count)`: so many bytes of `write` have left.
    """

    def __init__(self, loop: EventLoop, fd: int, *, room: int = 0) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.on_data: Callable[[bytes], object] = lambda _data: None
        self.on_end: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None
        self.on_written: Callable[[int], object] = lambda _count: None
        self._loop = loop
        self._room = room
        self._out = bytearray()
        self._input_over = False
        self._finishing = False
        self._watched = (False, False)
        self._watch()

    @property
    def pending(self) -> int:
        """Bytes that were written and have not left."""
        return len(self._out)

    def allow(self, count: int) -> None:
        """Take `count` bytes more from the other end."""
        self._room += count
        self._watch()

    def write(self, data: bytes) -> None:
        """Send `data`, at once or as the other end takes it."""
        self._out += data
        self._send()

    def finish(self) -> None:
        """Tell the other end, after what is pending, that nothing more comes."""
        self._finishing = True
        self._send()

    def detach(self) -> int:
        """Take the descriptor out of the loop and give it up."""
        fd, self.fd = self.fd, -1
        self._loop.remove(fd)
        return fd

    def close(self) -> None:
        """Close it, with whatever is pending. Twice is once."""
        if self.fd >= 0:
            os.close(self.detach())

    def _watch(self) -> None:
        wanted = (self._room > 0 and not self._input_over, bool(self._out))
        if wanted != self._watched and self.fd >= 0:
            self._loop.remove(self.fd)
            if any(wanted):
                self._loop.add(self.fd, self._readable if wanted[0] else None, self._send if wanted[1] else None)
            self._watched = wanted

    def _readable(self) -> None:
        try:
            data = os.read(self.fd, min(CHUNK, self._room))
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if data:
            self._room -= len(data)
            self._watch()
            self.on_data(data)
        else:
            self._input_over = True
            self._watch()
            self.on_end()

    def _send(self) -> None:
        count = 0
        while self._out and self.fd >= 0:
            try:
                done = os.write(self.fd, self._out[:CHUNK])
            except BlockingIOError:
                break
            except OSError:
                self._lose()
                return
            del self._out[:done]
            count += done
        if self.fd >= 0:
            self._watch()
            if self._finishing and not self._out:
                self._shut_down()
        if count:
            self.on_written(count)

    def _shut_down(self) -> None:
        from unikvm.sys.unixsocket import SHUT_WR, Socket

        self._finishing = False
        try:
            sock = Socket(fileno=self.fd)
        except OSError:
            return  # no socket: the other end learns from the close
        try:
            sock.shutdown(SHUT_WR)
        except OSError:
            pass  # the other end is gone
        finally:
            sock.detach()

    def _lose(self) -> None:
        self.close()
        self.on_lost()


def splice(loop: EventLoop, one: int, other: int) -> None:
    """Carry bytes between two descriptors, which it owns, until both directions have ended or one end is gone."""
    _Splice(loop, one, other)


class _Splice:
    def __init__(self, loop: EventLoop, one: int, other: int) -> None:
        self._ends = 0
        self._streams = (Stream(loop, one, room=4 * CHUNK), Stream(loop, other, room=4 * CHUNK))
        self._join(*self._streams)
        self._join(*self._streams[::-1])

    def _join(self, source: Stream, sink: Stream) -> None:
        """What `source` sends goes to `sink`, as fast as that takes it."""

        def written(count: int) -> None:
            source.allow(count)
            self._close_when_done()

        def ended() -> None:
            self._ends += 1
            sink.finish()
            self._close_when_done()

        source.on_data = sink.write
        source.on_end = ended
        source.on_lost = self._close
        sink.on_written = written

    def _close_when_done(self) -> None:
        if self._ends == 2 and not any(stream.pending for stream in self._streams):
            self._close()

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()
