# SPDX-License-Identifier: GPL-2.0-only
"""What `stat` says of memory that comes and goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from unikvm.control import memory
from unikvm.control.server import Later
from unikvm.errors import UnikvmError
from unikvm.machine import ram
from unikvm.machine.config import Config
from unikvm.machine.machine import Machine
from unikvm.sys.eventloop import EventLoop
from unikvm.units import GIB


def asked(loop: EventLoop, it: ram.Ram) -> dict[str, Any]:
    machine = cast(Machine, SimpleNamespace(parts=SimpleNamespace(io=SimpleNamespace(loop=loop))))
    result = memory.stat(machine, it, {"name": "lab"})
    if isinstance(result, Later):
        said: list[Any] = []

        def reply(value: object) -> None:
            said.append(value)
            loop.stop()

        result.start(reply, lambda _error: None)
        loop.run()
        assert len(said) == 1
        result = said[0]
    assert isinstance(result, dict)
    assert result.pop("name") == "lab"
    return cast(dict[str, Any], result["memory now"])


@pytest.fixture
def it() -> ram.Ram:
    return ram.prepare(Config(kernel="k", memory=GIB, max_memory=2 * GIB, balloon=True))


def test_the_guest_is_asked(it: ram.Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EventLoop()
    it.resize(2 * GIB)
    monkeypatch.setattr(it.balloon, "ask", lambda answer: answer({"free": 5 << 20, "major-faults": 3}))
    assert asked(loop, it) == {
        "asked for": "2G",
        "there": "1G",
        "in the balloon": "0B",
        "reported free so far": "0M",
        "plugged in": "0B",
        "most": "2G",
        "in the guest": {"free": "5M", "major-faults": 3},
    }
    loop.close()


def test_a_guest_that_does_not_answer(it: ram.Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EventLoop()
    monkeypatch.setattr(memory, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(it.balloon, "ask", lambda _answer: None)
    assert asked(loop, it)["in the guest"] == "no answer for 0.05 s"

    def refuse(_answer: object) -> None:
        raise UnikvmError("no driver")

    monkeypatch.setattr(it.balloon, "ask", refuse)
    assert asked(loop, it)["in the guest"] == "no driver"
    loop.close()


def test_no_balloon_to_ask() -> None:
    plugged = ram.prepare(Config(kernel="k", memory=GIB, max_memory=2 * GIB))
    loop = EventLoop()
    assert asked(loop, plugged) == {"asked for": "1G", "there": "1G", "plugged in": "0B", "most": "2G"}
    loop.close()
