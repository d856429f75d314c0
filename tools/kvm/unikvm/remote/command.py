# SPDX-License-Identifier: GPL-2.0-only
"""A command in a guest: its streams, its terminal and its end, on one poll loop.

Standard input waits for credit of the agent, so that signals and window sizes never wait behind it. Output is written
in pieces that a pipe or terminal takes at once, so neither do they while somebody reads slowly.
"""

from __future__ import annotations

import os
import select
import stat

from unikvm import wire
from unikvm.errors import CannotRun, UnikvmError
from unikvm.lean import SimpleQueue
from unikvm.remote import frames
from unikvm.sys.eventfd import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from unikvm.remote.frames import Stream

PIECE = 4096  # what a pipe that can be written to takes for certain


def request(
    argv: Sequence[str],
    *,
    login: bool = False,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    user: str = "",
    size: tuple[int, int] | None = None,
) -> list[str]:
    """The words of a request to run `argv`; with `login` the user's shell, as after a login. `size` (columns, rows)
    asks for a terminal. `user`: NAME, UID or UID:GID; empty for root. `cwd`: empty for the user's home."""
    words = ["exec", *(["login"] if login else [])]
    if size is not None:
        words += ["tty=pty", f"cols={size[0]}", f"rows={size[1]}"]
    words += [f"cwd={cwd}"] if cwd else []
    words += [f"user={user}"] if user else []
    words += [f"env={name}={value}" for name, value in (env or {}).items()]
    return words if login else [*words, "--", *argv]


class RemoteCommand:
    """One command over `stream`. `typed` filters what is read from `stdin`; what it raises ends the relay.

    `run` returns the exit status as a shell gives it. `signal` and `resize` may come from signal handlers.
    """

    def __init__(
        self,
        stream: Stream,
        words: Sequence[str],
        *,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        typed: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._stream = stream
        self._words = words
        self._stdin = stdin
        self._typed = typed
        self._credit = frames.WINDOW
        self._outputs = {frames.OUT: _Output(stdout), frames.ERR: _Output(stderr)}
        self._orders: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self._wakeup = EventFd()
        self._status: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        self._order(frames.SIGNAL, str(number))

    def resize(self, columns: int, rows: int) -> None:
        """Its terminal has another size."""
        self._order(frames.WINSIZE, f"{columns} {rows}")

    def _order(self, kind: int, words: str) -> None:
        self._orders.put((kind, words))
        self._wakeup.signal()

    def run(self) -> int:
        """To the command's end, with all it wrote written. Refused where it cannot be started, Lost where the guest
        goes."""
        try:
            self._stream.put_words(frames.REQUEST, *self._words)
            while self._status is None or any(output.waiting for output in self._outputs.values()):
                self._turn()
            return self._status
        finally:
            self._wakeup.close()

    def _turn(self) -> None:
        poller = select.poll()
        poller.register(self._wakeup.fd, select.POLLIN)
        for output in self._outputs.values():
            if output.waiting:
                poller.register(output.fd, select.POLLOUT)
        blocked = any(output.waiting for output in self._outputs.values())
        mask = select.POLLOUT if self._stream.waiting else 0
        if self._status is None and not blocked:
            mask |= select.POLLIN
            if self._stdin >= 0 and self._credit > 0:
                poller.register(self._stdin, select.POLLIN)
        if mask:
            poller.register(self._stream, mask)
        ready = dict(poller.poll())
        if self._wakeup.fd in ready:
            self._wakeup.drain()
            while not self._orders.empty():
                kind, words = self._orders.get()
                self._stream.put(kind, words.encode())
        for output in self._outputs.values():
            if output.fd in ready:
                output.write()
        if ready.get(self._stdin) and self._stdin >= 0:
            self._read()
        events = ready.get(self._stream.fileno(), 0)
        if events & select.POLLOUT:
            self._stream.flush()
        if events & ~select.POLLOUT and self._status is None:
            self._stream.fill()
        self._receive()

    def _read(self) -> None:
        data = os.read(self._stdin, min(self._credit, frames.MAX_DATA))
        if not data:
            self._stdin = -1
            self._stream.put(frames.EOF)
            return
        if self._typed is not None:
            data = self._typed(data)
        if data:
            self._credit -= len(data)
            self._stream.put(frames.DATA, data)

    def _receive(self) -> None:
        while self._status is None and (frame := self._stream.next()) is not None:
            kind, data = frame
            if kind in self._outputs:
                self._outputs[kind].add(data)
            elif kind == frames.CREDIT:
                self._credit += int(data)
            elif kind == frames.EOF:
                self._stdin = -1  # nobody reads it any more
            elif kind == frames.EXIT:
                how, number = wire.decode(data)
                self._status = 128 + int(number) if how == "signal" else int(number)
            elif kind != frames.STARTED:
                raise UnikvmError(f"the guest's agent sends a frame of kind {kind}")
            if any(output.waiting for output in self._outputs.values()):
                return


class _Output:
    """A descriptor that is written to without waiting for its reader. CannotRun where it takes no more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._plain = stat.S_ISREG(os.fstat(fd).st_mode)
        self._data = b""

    @property
    def waiting(self) -> bool:
        return bool(self._data)

    def add(self, data: bytes) -> None:
        self._data += data
        if self._plain:
            while self._data:
                self.write(len(self._data))

    def write(self, size: int = PIECE) -> None:
        try:
            self._data = self._data[os.write(self.fd, self._data[:size]) :]
        except BlockingIOError:
            pass  # a terminal that another process made non-blocking
        except BrokenPipeError:
            raise
        except OSError as error:
            name = {1: "stdout", 2: "stderr"}.get(self.fd, "the output")
            raise CannotRun(f"{name} cannot be written: {error.strerror}") from None
