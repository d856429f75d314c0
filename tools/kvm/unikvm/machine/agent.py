# SPDX-License-Identifier: GPL-2.0-only
"""Runs one command in a guest through its init: the VMM's end of `unikvm.wire`, on the io thread.

Standard input, output and errors are ports of their own, so they stay apart and are byte-exact; on a terminal the
command gets the console instead.
"""

from __future__ import annotations

from unikvm import wire
from unikvm.errors import CANNOT_RUN, UnikvmError
from unikvm.lean import deque
from unikvm.machine.events import CommandExit, Event, Hang, VmmFailure
from unikvm.sys.eventloop import EventLoop
from unikvm.virtio.port import Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Agent:
    """Waits for init, runs `argv`, and posts the event of its end.

    `stdin`, `stdout`, `stderr`: descriptors (ignored with `console`, which runs it on the guest's console as its
    terminal). `setup`: requests that init has to carry out before, word by word. `watchdog`: seconds without a sign of
    life after which the guest counts as hung; 0 never.
    """

    def __init__(
        self,
        argv: Sequence[str],
        post: Callable[[Event], None],
        *,
        console: bool,
        size: tuple[int, int] = (80, 24),
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: str = "",
        setup: Sequence[Sequence[str]] = (),
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        watchdog: float = 0.0,
    ) -> None:
        tty = "console" if console else "none"
        self._request = wire.exec_line(argv, cwd=cwd, env=env, user=user, tty=tty, size=size)
        self._setup = deque(wire.encode(*words) for words in setup)
        self._post = post
        self._lines = wire.LineReader()
        self._command = wire.Command()
        self._watchdog = watchdog
        self._ready = False
        self._alive = True
        self._ended = False
        self._after: Callable[[], None] | None = None
        self._ctl = Port(wire.PORT_CTL, sink=self._received)
        self.ports: tuple[Port, ...] = (self._ctl,)
        if not console:
            self._stdin = Port(wire.PORT_STDIN, source=stdin, on_source_end=self._input_ended)
            # Its end is told on ctl: a port that closes before init has opened it would look like a missing one.
            self._stdin.keep_open = True
            self.ports += (self._stdin, self._output(wire.PORT_STDOUT, stdout), self._output(wire.PORT_STDERR, stderr))

    def start(self, loop: EventLoop) -> None:
        """Begin to watch over the guest. On the io thread, or before it runs."""
        self._loop = loop
        if self._watchdog:
            loop.call_later(self._watchdog, self._check)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size. From any thread."""
        if self._ready:
            self._ctl.send(wire.encode("winsize", str(columns), str(rows)))

    def power_off(self, seconds: float) -> None:
        """Ask init to sync and power off; a guest that does not within `seconds` counts as hung."""
        self._ctl.send(wire.encode("poweroff"))
        late = Hang(f"the guest did not power off within {seconds:g} s after its command")
        self._loop.call_later(seconds, lambda: self._post(late))

    def sync(self, seconds: float, done: Callable[[], None]) -> None:
        """After the command: ask init to write out what the guest holds of files, and call `done`; at the latest after
        `seconds`, since the other end of those files may be gone."""
        self._after = done
        self._ctl.send(wire.encode("sync"))
        self._loop.call_later(seconds, done)

    def _received(self, data: bytes) -> None:
        self._alive = True
        try:
            for words in self._lines.feed(data):
                self._on_line(words)
        except (wire.WireError, ValueError, IndexError) as error:
            self._end(VmmFailure(UnikvmError(f"the guest's init does not speak the protocol: {error}")))

    def _on_line(self, words: list[str]) -> None:
        if words[0] == "ready":
            if words[1] != wire.PROTOCOL:
                message = f"the guest's init speaks protocol {words[1]}, not {wire.PROTOCOL}"
                self._end(VmmFailure(UnikvmError(message, hint="rebuild it: make build", outcome=CANNOT_RUN)))
                return
            self._ready = True
            self._next_step()
        elif self._setup:
            self._step_done(words)
        elif self._after is not None and words == ["ok"]:
            self._after()
        elif self._command.on_line(words):
            self._finish()

    def _next_step(self) -> None:
        self._ctl.send(self._setup[0] if self._setup else self._request)

    def _step_done(self, words: list[str]) -> None:
        """An answer before the command: what it needs is there, or the run is over."""
        if words == ["ok"]:
            self._setup.popleft()
            self._next_step()
        elif words[0] == "error":
            self._end(VmmFailure(UnikvmError(f"in the guest: {words[-1]}", outcome=CANNOT_RUN)))

    def _output(self, name: str, sink: int) -> Port:
        def sent(size: int) -> None:
            self._command.on_output(name, size)
            self._finish()

        def lost(error: OSError) -> None:
            if isinstance(error, BrokenPipeError):  # the command finds out, as in a pipeline
                self._ctl.send(wire.encode(*wire.hangup(name)))
            else:
                message = f"{name.rpartition('.')[2]} cannot be written: {error.strerror}"
                self._end(VmmFailure(UnikvmError(message, outcome=CANNOT_RUN)))

        port = Port(name, sink=sink, on_sent=sent, on_sink_lost=lost)
        port.keep_open = True  # what is under way arrives, and is dropped
        return port

    def _input_ended(self, total: int) -> None:
        self._ctl.send(wire.encode("eof", str(total)))

    def _finish(self) -> None:
        if not self._command.done:
            return
        if self._command.error:
            # As a shell: 127 when there is no such command, within what a run may end with.
            self._end(VmmFailure(UnikvmError(self._command.error, outcome=CANNOT_RUN)))
        else:
            self._end(CommandExit(self._command.shell_status))

    def _check(self) -> None:
        """The watchdog: init answers a ping, whatever the command does."""
        if self._ended:
            return
        if not self._alive:
            what = "does not answer" if self._ready else "did not reach init"
            self._end(Hang(f"the guest {what} for {self._watchdog:g} s"))
            return
        self._alive = False
        if self._ready:
            self._ctl.send(wire.encode("ping"))
        self._loop.call_later(self._watchdog, self._check)

    def _end(self, event: Event) -> None:
        if not self._ended:
            self._ended = True
            self._post(event)
