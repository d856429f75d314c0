# SPDX-License-Identifier: GPL-2.0-only
"""The `io` thread: doorbells, back ends and timers, all on one event loop."""

from __future__ import annotations

from unikvm.lean import SimpleQueue
from unikvm.machine.events import Event, VmmFailure
from unikvm.sys.eventloop import EventLoop
from unikvm.sys.thread import Thread, hurry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class IoThread:
    """Owns the event loop's thread. A callback's exception is a defect of the user half and ends the run."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self.loop = EventLoop()
        self._post = post
        self._thread = Thread(self._main, "io")

    def start(self) -> None:
        self._thread.start()

    def _main(self) -> None:
        hurry()
        try:
            self.loop.run()
        except Exception as error:
            self._post(VmmFailure(error))

    def stop(self) -> None:
        """End the loop and wait for the thread."""
        if self._thread.ident is not None:
            self.loop.stop()
            self._thread.join()

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` on the io thread and wait for its end; at once when the thread does not run."""
        if not self._thread.alive or self._thread.is_current:
            function()
            return
        done: SimpleQueue[None] = SimpleQueue()

        def run() -> None:
            try:
                function()
            finally:
                done.put(None)

        self.loop.call_soon(run)
        done.get()

    def schedule(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back once after `seconds`, on the io thread. From any thread."""

        self.loop.call_soon(lambda: self.loop.call_later(seconds, callback))


class SerialInput:
    """What is typed for the serial port: fed from any thread, handed over on the io thread as the guest takes it."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._waiting = bytearray()
        self.receive: Callable[[bytes], int] | None = None

    def feed(self, data: bytes) -> None:
        """Type `data`."""

        def take() -> None:
            self._waiting += data
            self._offer()

        self._loop.call_soon(take)

    def room(self) -> None:
        """The guest took something: offer more. On a vCPU's thread."""
        if self._waiting:
            self._loop.call_soon(self._offer)

    def _offer(self) -> None:
        if self.receive is not None and self._waiting:
            del self._waiting[: self.receive(bytes(self._waiting))]
