# SPDX-License-Identifier: GPL-2.0-only
"""Back ends as processes: started with a connection that nobody else gets, ended with this process, started again."""

from __future__ import annotations

import time

from unikvm.errors import CannotRun, UnikvmError
from unikvm.lean import SimpleQueue
from unikvm.sys.process import Process, spawn
from unikvm.sys.thread import Thread
from unikvm.sys.unixsocket import Socket, pair, prearranged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol, TypeVar

    from unikvm.sys.eventloop import EventLoop

    Found = TypeVar("Found")

    class Backend(Protocol):
        """What serves a device's queues from outside this process."""

        name: str  # for people

        def open(self) -> Socket:
            """A connection to it; CannotRun where there is none. Anew after `stop`, where `again`."""
            ...

        @property
        def again(self) -> bool:
            """Whether another `open` may get on with what this one left."""
            ...

        def why(self) -> str:
            """Its own words on why it ended, or an empty string."""
            ...

        def stop(self) -> None:
            """End it at once: when this returns, nothing of it touches guest memory."""
            ...

        def close(self) -> None:
            """End it in good order and release what it had."""
            ...


MAX_RESTARTS = 3  # of a back end that ends again and again
PATIENCE_SECONDS = 60.0  # after this long without an end, earlier ones are forgotten
RESTART_SECONDS = 0.2  # from its end to the next attempt, times the attempts
FAREWELL_SECONDS = 5.0  # for a program to end by itself when its connection has
DEATH_SECONDS = 0.1  # from the end of a connection to the end of its program; other devices wait meanwhile


class Restarts:
    """How often a back end is started again: one that ends again and again is given up."""

    def __init__(self) -> None:
        self._count = 0
        self._last = 0.0

    def next(self) -> float | None:
        """It has ended: the seconds to wait before it is started again, or None."""
        now = time.monotonic()
        if now - self._last > PATIENCE_SECONDS:
            self._count = 0
        self._last = now
        self._count += 1
        return RESTART_SECONDS * self._count if self._count <= MAX_RESTARTS else None


class Reviver:
    """Finds the successor of a back end that has ended, on a thread of its own: the io thread has other devices."""

    def __init__(self) -> None:
        self._thread: Thread | None = None

    def start(
        self,
        loop: EventLoop,
        find: Callable[[], Found],
        found: Callable[[Found], object],
        failed: Callable[[str], object],
    ) -> None:
        """Call `found` with what `find` gives, or `failed` with why it raised UnikvmError, on the loop's thread."""

        def run() -> None:
            try:
                successor = find()
            except UnikvmError as error:
                why = error.message
                loop.call_soon(lambda: failed(why))
            else:
                loop.call_soon(lambda: found(successor))

        self._thread = Thread(run, "revive")
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether it has ever been at work."""
        return self._thread is not None

    def join(self) -> None:
        """Wait for the end of a search that is under way."""
        if self._thread is not None:
            self._thread.join()


class Program:
    """A back end that is a child process. `argv` gets the number of a listening socket, of which it accepts one
    connection, or with `connected` that of the connection itself; `prepare` runs in the child. It is started at once:
    what it has to do goes on beside ours. `ends_alone`: when its connection does.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[int], Sequence[str]],
        *,
        prepare: Callable[[], None] | None = None,
        again: bool = False,
        connected: bool = False,
        ends_alone: bool = True,
    ) -> None:
        self.name = name
        self.again = again
        self._argv = argv
        self._prepare = prepare
        self._connected = connected
        self._ends_alone = ends_alone
        self._socket: Socket | None = None
        self._process: Process | None = None
        self._keepers: list[SimpleQueue[None]] = []
        self._extra: list[int] = []  # descriptors that a program of another kind gets besides
        self._start()

    @property
    def pid(self) -> int:
        """The process, or 0."""
        return self._process.pid if self._process is not None else 0

    @property
    def pidfd(self) -> int:
        """Readable when the process has ended; -1 where none was started."""
        return self._process.pidfd if self._process is not None else -1

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process is None or self._process.poll() is not None

    def _start(self) -> None:
        theirs, client = pair() if self._connected else prearranged()
        try:
            number = theirs.fileno()
            self._process = spawn(self._argv(number), fds=[number, *self._extra], prepare=self._prepare)
        except BaseException:
            client.close()
            raise
        finally:
            theirs.close()
        self._socket = client

    def open(self) -> Socket:
        if self._process is None:
            self._start_on_a_thread()
        sock, self._socket = self._socket, None
        if sock is None:
            raise CannotRun(f"{self.name} has one connection only")
        return sock

    def _start_on_a_thread(self) -> None:
        """The kernel ends a child with the *thread* that started it: have one that does nothing else and stays."""
        keeper: SimpleQueue[None] = SimpleQueue()
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def start() -> None:
            try:
                self._start()
            except BaseException as error:
                done.put(error)
                return
            done.put(None)
            keeper.get()

        self._keepers.append(keeper)
        Thread(start, "keeper").start()
        error = done.get()
        if error is not None:
            raise error

    def why(self) -> str:
        process = self._process
        if process is None:
            return ""
        status = process.wait(DEATH_SECONDS)
        said = process.log_text().splitlines()
        words = said[-1][-300:] if said else ""
        if status is None:
            return words  # it lives, and does not want us any more
        end = f"signal {-status} ended it" if status < 0 else f"it ended with status {status}"
        return f"{end}: {words}" if words else end

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.close()
            self._process = None

    def close(self) -> None:
        if self._socket is not None:  # never used: it still waits for us to come
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.end(FAREWELL_SECONDS, alone=self._ends_alone)
        self.stop()
        for keeper in self._keepers:
            keeper.put(None)
        self._keepers.clear()
