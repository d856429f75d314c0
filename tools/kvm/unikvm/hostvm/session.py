# SPDX-License-Identifier: GPL-2.0-only
"""The conversation with init in the host VM: requests, one command at a time, and its bytes.

One poll loop on the calling thread; nothing runs between calls (QEMU buffers, init waits).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from unikvm.errors import CannotRun, UnikvmError
from unikvm.hostvm.watchdog import HEARTBEAT, HostError, Watchdog
from unikvm.sys.eventfd import EventFd
from unikvm.wire import PORT_CTL, PORT_STDERR, PORT_STDIN, PORT_STDOUT, Command, LineReader, encode, hangup

_CHUNK = 65536
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL when the time is over
_BEAT = ["pong", "beat"]  # the answer to the watchdog's pings; others' pings say something else
Sink = Callable[[bytes], object]


class Session:
    """Talks through the four ports. `pidfds` are looked at by `watch` as soon as one of them ends."""

    def __init__(
        self, ports: Mapping[str, socket.socket], watchdog: Watchdog, pidfds: Sequence[int], watch: Callable[[], None]
    ) -> None:
        self._ports = ports
        self._watchdog = watchdog
        self._watch = watch
        self._pidfds = set(pidfds)
        self._lines = LineReader()
        self._answers: list[list[str]] = []
        self._outgoing = bytearray()  # for ctl
        self._asked = False  # a ping is unanswered
        self._quiet_since = time.monotonic()
        self._size: tuple[int, int] | None = None
        self._resized = EventFd()
        for sock in ports.values():
            sock.setblocking(False)

    def close(self) -> None:
        self._resized.close()

    # Requests

    def send(self, *words: str) -> None:
        """Queue a line for init; it leaves in the next wait."""
        self._outgoing += encode(*words)

    def answer(self, seconds: float, what: str) -> list[str]:
        """The next answer, within `seconds` of waiting for it. UnikvmError where it is an error, HostError where
        none comes: `what` is what was waited for."""
        left = seconds
        while not self._answers:
            if left <= 0:
                self._watchdog.hung(f"{what} took more than {seconds:.0f} s")
            left -= self._turn({}, min(left, HEARTBEAT))
        words = self._answers.pop(0)
        if words[0] == "error":
            raise UnikvmError(f"in the host VM: {words[-1]}")
        return words

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now. May be called from a signal handler."""
        self._size = (columns, rows)
        self._resized.signal()

    # One command

    def run(
        self,
        request: bytes,
        stdin: int | bytes | None,
        out: Sink,
        err: Sink,
        *,
        typed: Callable[[bytes], bytes] | None = None,
        timeout: float | None = None,
    ) -> tuple[Command, bool]:
        """Run an `exec` request to its end, with all its bytes; and whether its time was over and it was ended.

        `stdin` is a descriptor, the bytes themselves, or None for none. `typed` filters what comes from a descriptor.
        """
        course = _Course(stdin, out, err, typed)
        self._outgoing += request
        clock = _Timeout(timeout)
        try:
            while not course.command.done:
                self._turn(course.wanted(self._ports), clock.wait(HEARTBEAT), course)
                for words in self._take_answers():
                    if not course.command.on_line(words):
                        raise UnikvmError(f"init answered {words[0]!r} out of turn")
                course.announce_eof(self.send)
                course.announce_hangups(self.send)
                number = clock.due()
                if number:
                    self.send("signal", str(number))
            course.announce_eof(self.send, force=True)
        except HostError as error:
            error.output_seen = course.output_seen
            raise
        return course.command, clock.expired

    def _take_answers(self) -> list[list[str]]:
        answers, self._answers = self._answers, []
        return answers

    # The loop

    def _turn(self, wanted: dict[int, int], seconds: float, course: _Course | None = None) -> float:
        """Wait once for at most `seconds` and serve what came; the seconds waited."""
        poller = select.poll()
        ctl = self._ports[PORT_CTL]
        poller.register(ctl, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        poller.register(self._resized.fd, select.POLLIN)
        for pidfd in self._pidfds:
            poller.register(pidfd, select.POLLIN)
        for fd, events in wanted.items():
            poller.register(fd, events)
        before = time.monotonic()
        ready = dict(poller.poll(max(0, int(seconds * 1000))))
        now = time.monotonic()
        waited = now - before
        if ctl.fileno() in ready:
            self._serve_ctl(ctl)
        elif self._asked:
            self._watchdog.waited(waited)
        if self._resized.fd in ready:
            self._resized.drain()
            if self._size:
                self.send("winsize", *map(str, self._size))
        if course is not None:
            course.serve(ready, self._ports)
        self._watchdog.check()
        for pidfd in self._pidfds & ready.keys():
            self._pidfds.discard(pidfd)
            self._watch()
        if not self._asked and now - self._quiet_since > HEARTBEAT:
            self._asked = True
            self.send("ping", _BEAT[1])
        return waited

    def _serve_ctl(self, ctl: socket.socket) -> None:
        try:
            if self._outgoing:
                del self._outgoing[: ctl.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # QEMU ended: the watchdog says it better
            self._outgoing.clear()
        try:
            data = ctl.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._watchdog.closed("its control port")
        self._watchdog.heard()
        self._asked = False
        self._quiet_since = time.monotonic()
        self._answers += [words for words in self._lines.feed(data) if words != _BEAT]


class _Timeout:
    """When to send which signal to a command that takes too long."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self.expired = False
        self._killed = False

    def wait(self, longest: float) -> float:
        if self._end is None or self._killed:
            return longest
        return max(0.0, min(longest, self._end - time.monotonic()))

    def due(self) -> int:
        """The signal that is due now, or 0."""
        if self._end is None or self._killed or time.monotonic() < self._end:
            return 0
        if not self.expired:
            self.expired = True
            self._end += _GRACE
            return signal.SIGTERM
        self._killed = True
        return signal.SIGKILL


class _Course:
    """The bytes of one command on the front's side.

    No input leaves before init's `ok`. It travels in another queue than the lines: earlier, it could overtake the `eof`
    of the command before and be dropped as that one's; and a command that cannot start leaves none behind.
    """

    def __init__(self, stdin: int | bytes | None, out: Sink, err: Sink, typed: Callable[[bytes], bytes] | None) -> None:
        self.command = Command()
        self.output_seen = False
        self._sinks = {PORT_STDOUT: out, PORT_STDERR: err}
        self._typed = typed
        self._source = stdin if isinstance(stdin, int) else -1
        self._pending = stdin if isinstance(stdin, bytes) else b""
        self._sent = 0
        self._announced = False
        self._hangups: list[str] = []

    def wanted(self, ports: Mapping[str, socket.socket]) -> dict[int, int]:
        """What to poll for."""
        fds = {ports[port].fileno(): select.POLLIN for port in self._sinks}
        if not self.command.pid:
            return fds
        if self._pending:
            fds[ports[PORT_STDIN].fileno()] = select.POLLOUT
        elif self._source >= 0:
            fds[self._source] = select.POLLIN
        return fds

    def serve(self, ready: Mapping[int, int], ports: Mapping[str, socket.socket]) -> None:
        for port, sink in self._sinks.items():
            if ports[port].fileno() in ready:
                self._take(port, ports[port], sink)
        if self._source in ready:
            data = os.read(self._source, _CHUNK)
            if not data:
                self._source = -1
            elif self._typed is not None:
                data = self._typed(data)
            self._pending = data
        if self._pending and self.command.pid:
            try:
                count = ports[PORT_STDIN].send(self._pending)
            except BlockingIOError:
                return
            except OSError:  # QEMU ended
                self._pending, self._source = b"", -1
                return
            self._sent += count
            self._pending = self._pending[count:]

    def _take(self, port: str, sock: socket.socket, sink: Sink) -> None:
        try:
            data = sock.recv(_CHUNK)
        except OSError:
            return
        if data:
            self.output_seen = True
            self.command.on_output(port, len(data))
            try:
                sink(data)
            except BrokenPipeError:  # the command finds out, as in a pipeline
                self._sinks[port] = lambda _data: None
                self._hangups.append(port)
            except OSError as error:
                raise CannotRun(f"{port.rpartition('.')[2]} cannot be written: {error.strerror}") from None

    def announce_hangups(self, send: Callable[..., None]) -> None:
        """Tell init of which output nobody reads any more."""
        for port in self._hangups:
            send(*hangup(port))
        self._hangups.clear()

    def announce_eof(self, send: Callable[..., None], *, force: bool = False) -> None:
        """Tell init how long the stdin of a command that started was, once it is over or nobody reads it any more."""
        over = force or (self._source < 0 and not self._pending)
        if over and self.command.pid and not self._announced:
            self._announced = True
            send("eof", str(self._sent))
