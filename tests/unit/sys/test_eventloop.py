# SPDX-License-Identifier: GPL-2.0-only
"""The event loop: descriptors, timers, calls from other threads, and hang-ups that nobody waits for."""

from __future__ import annotations

import os
import threading

from unikvm.sys.eventfd import EventFd
from unikvm.sys.eventloop import EventLoop


def test_readable_and_remove() -> None:
    loop, event, seen = EventLoop(), EventFd(), []

    def ready() -> None:
        seen.append(event.drain())
        loop.remove(event.fd)
        loop.stop()

    loop.add(event.fd, ready)
    event.signal()
    event.signal()
    loop.run()
    assert seen == [2]
    assert event.drain() == 0


def test_timers_fire_in_order_and_can_be_cancelled() -> None:
    loop = EventLoop()
    fired: list[str] = []
    loop.call_later(0.002, lambda: fired.append("second"))
    loop.call_later(0.001, lambda: fired.append("first"))
    loop.call_later(0.0015, lambda: fired.append("never")).cancel()
    loop.call_later(0.003, loop.stop)
    loop.run()
    assert fired == ["first", "second"]


def test_call_soon_from_another_thread() -> None:
    loop = EventLoop()
    names: list[str] = []
    thread = threading.Thread(target=loop.run, name="looper")
    thread.start()
    loop.call_soon(lambda: names.append(threading.current_thread().name))
    loop.stop()
    thread.join(5)
    assert names == ["looper"]


def test_a_hang_up_that_nobody_waits_for_is_dropped() -> None:
    loop = EventLoop()
    reader, writer = os.pipe()
    loop.add(reader, None)
    os.close(writer)
    loop.call_later(0.01, loop.stop)
    loop.run()
    loop.remove(reader)  # gone already: no error
    os.close(reader)


def test_a_callback_may_remove_itself_between_its_two_directions() -> None:
    loop = EventLoop()
    a, b = os.pipe()
    seen: list[str] = []

    def readable() -> None:
        seen.append("r")
        loop.remove(a)
        loop.stop()

    loop.add(a, readable, lambda: seen.append("w"))
    os.close(b)
    loop.run()
    assert seen == ["r"]
