# SPDX-License-Identifier: GPL-2.0-only
"""Threads without `threading`: names and ends."""

from __future__ import annotations

from pathlib import Path

from unikvm.lean import SimpleQueue
from unikvm.sys.thread import Thread


def test_a_thread_has_a_name_that_the_system_shows_and_an_end() -> None:
    names: SimpleQueue[str] = SimpleQueue()
    go: SimpleQueue[None] = SimpleQueue()

    def main() -> None:
        assert thread.is_current
        names.put(Path("/proc/thread-self/comm").read_text().strip())
        go.get()

    thread = Thread(main, "vcpu/0")
    assert not thread.alive
    thread.join()  # it never began: at once
    thread.start()
    assert names.get(timeout=5) == "vcpu/0"
    assert thread.alive
    assert not thread.is_current
    go.put(None)
    thread.join()
    assert not thread.alive
    thread.join()
