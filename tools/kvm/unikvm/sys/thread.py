# SPDX-License-Identifier: GPL-2.0-only
"""Threads with names that the system shows. They do not keep a process alive, as `threading`'s daemons.

`threading` itself, with what it imports, would be a fifth of what a payload's run imports.
"""

from __future__ import annotations

import _thread
import os

from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


IO_NICE = -10


def hurry() -> None:
    """Let the calling thread, which serves devices, go before the vCPUs, where the system allows it: a guest spins
    while it waits for its console, and on one CPU a fair scheduler would let it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, IO_NICE)
    except OSError:
        pass  # it takes privileges, and is only faster


class Thread:
    """Runs `target` once, from `start` on. `ident` is None before."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._name = name
        self._running = _thread.allocate_lock()
        self.ident: int | None = None

    def start(self) -> None:
        self._running.acquire()
        try:
            self.ident = _thread.start_new_thread(self._main, ())
        except RuntimeError:
            self._running.release()
            raise CannotRun(f"the system has no thread left for {self._name}", hint="see ulimit -u, -v") from None

    def _main(self) -> None:
        try:
            with open(f"/proc/self/task/{_thread.get_native_id()}/comm", "wb") as comm:
                comm.write(self._name.encode()[:15])
        except OSError:
            pass  # a /proc that is not there: the name is for people
        try:
            self._target()
        finally:
            self._running.release()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.ident is not None and self._running.locked()

    @property
    def is_current(self) -> bool:
        """Whether the caller is it."""
        return self.ident == _thread.get_ident()

    def join(self, seconds: float = -1) -> None:
        """Wait for its end, for at most `seconds` if those are given; at once when it never began."""
        if self.ident is not None and self._running.acquire(timeout=seconds):
            self._running.release()
