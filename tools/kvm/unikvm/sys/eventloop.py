# SPDX-License-Identifier: GPL-2.0-only
"""An epoll loop: the `io` thread's heart. Callbacks run on the thread that calls `run`, one at a time."""

from __future__ import annotations

import select
import time

from unikvm.lean import deque, heappop, heappush
from unikvm.sys.eventfd import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[], object]


class Timer:
    """A pending call; `cancel` may be called from the loop's thread only."""

    __slots__ = ("_callback", "deadline")

    def __init__(self, deadline: float, callback: Callback) -> None:
        self.deadline = deadline
        self._callback: Callback | None = callback

    def cancel(self) -> None:
        self._callback = None

    @property
    def pending(self) -> bool:
        """Whether it was neither called nor cancelled."""
        return self._callback is not None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def __lt__(self, other: Timer) -> bool:
        return self.deadline < other.deadline


class EventLoop:
    """Waits for file descriptors and timers. `add`, `remove` and `call_soon` may come from any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[Callback | None, Callback | None]] = {}
        self._soon: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._wakeup = EventFd()
        self._running = False
        self._epoll.register(self._wakeup.fd, select.EPOLLIN)

    def add(self, fd: int, on_readable: Callback | None, on_writable: Callback | None = None) -> None:
        """Call `on_readable` whenever `fd` can be read (or hung up), `on_writable` whenever it takes bytes.

        Raises PermissionError for what epoll does not wait for (regular files: always ready).
        """
        self._callbacks[fd] = (on_readable, on_writable)
        try:
            self._epoll.register(fd, self._mask(on_readable, on_writable))
        except OSError:
            del self._callbacks[fd]
            raise

    def remove(self, fd: int) -> None:
        """Forget `fd`. On the loop's thread: no callback for it runs any more. Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    @staticmethod
    def _mask(on_readable: Callback | None, on_writable: Callback | None) -> int:
        return (select.EPOLLIN if on_readable else 0) | (select.EPOLLOUT if on_writable else 0)

    def call_soon(self, callback: Callback) -> None:
        """Run `callback` on the loop's thread, after what is queued already."""
        self._soon.append(callback)
        self._wakeup.signal()

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Run `callback` after `seconds`. From the loop's thread only (others go through `call_soon`)."""
        timer = Timer(time.monotonic() + seconds, callback)
        heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        """Serve until `stop`. An exception of a callback ends the loop: it is a defect, and the caller reports it."""
        self._running = True
        while self._running:
            for fd, events in self._epoll.poll(self._timeout()):
                if fd == self._wakeup.fd:
                    self._wakeup.drain()
                    continue
                self._dispatch(fd, events)
            self._fire_timers()
            while self._soon:
                self._soon.popleft()()

    def _dispatch(self, fd: int, events: int) -> None:
        # Looked up again for each direction: the first callback may have removed or changed the descriptor.
        failed = events & (select.EPOLLHUP | select.EPOLLERR)
        on_readable = self._callbacks.get(fd, (None, None))[0]
        if on_readable is not None and (events & select.EPOLLIN or failed):
            on_readable()
        on_writable = self._callbacks.get(fd, (None, None))[1]
        if on_writable is not None and (events & select.EPOLLOUT or failed):
            on_writable()
        if failed and on_readable is None and on_writable is None:
            # Nobody waits for this descriptor, yet epoll always reports hang-ups: it would spin.
            self.remove(fd)

    def _timeout(self) -> float | None:
        if self._soon:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0].deadline - time.monotonic())

    def _fire_timers(self) -> None:
        now = time.monotonic() if self._timers else 0.0
        while self._timers and self._timers[0].deadline <= now:
            heappop(self._timers).fire()

    def stop(self) -> None:
        """End `run` after the callbacks under way. From any thread."""

        def end() -> None:
            self._running = False

        self.call_soon(end)

    def close(self) -> None:
        self._epoll.close()
        self._wakeup.close()
