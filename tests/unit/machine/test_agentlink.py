# SPDX-License-Identifier: GPL-2.0-only
"""The agent's waiting connection: who gets it, who is believed, and what becomes of old ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from unikvm.errors import UnikvmError
from unikvm.machine.agentlink import AgentLink
from unikvm.sys.eventloop import EventLoop

CID = 4711


class FakeListener:
    """Where connections come from anybody we like."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self._dialled: list[tuple[int, int, int]] = []

    def fileno(self) -> int:
        return self._ours.fileno()

    def accept(self) -> tuple[int, int, int]:
        self._ours.recv(1)
        return self._dialled.pop(0)

    def dial(self, cid: int = CID, port: int = 1000) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._dialled.append((ours.detach(), cid, port))
        self._theirs.send(b"x")
        theirs.settimeout(5)
        return theirs

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


class Scene:
    def __init__(self) -> None:
        self.loop = EventLoop()
        self.listener = FakeListener()
        self.link = AgentLink(self.listener, CID)
        self.link.start(self.loop)
        self.given: list[int] = []
        self.errors: list[UnikvmError] = []

    def settle(self) -> None:
        for _ in range(3):
            self.loop.stop()
            self.loop.run()

    def ask(self, seconds: float = 60.0) -> None:
        self.link.connect(self.given.append, self.errors.append, seconds)
        self.settle()

    def leads_to(self, agent: socket.socket) -> bool:
        os.write(self.given[-1], b"hello")
        return agent.recv(5) == b"hello"


@pytest.fixture
def scene() -> Iterator[Scene]:
    it = Scene()
    yield it
    it.loop.close()
    it.listener.close()
    for fd in it.given:
        os.close(fd)


def test_who_asks_gets_the_one_that_waits(scene: Scene) -> None:
    agent = scene.listener.dial()
    scene.settle()
    scene.ask()
    assert scene.leads_to(agent)


def test_who_asks_early_waits(scene: Scene) -> None:
    scene.ask()
    scene.ask()
    assert scene.given == []
    first, second = scene.listener.dial(), scene.listener.dial()
    scene.settle()
    assert len(scene.given) == 2
    assert scene.leads_to(second)
    assert first.fileno() >= 0


def test_who_asks_in_vain(scene: Scene) -> None:
    scene.ask(0.0)
    scene.settle()
    assert "has not come up within 0 s" in scene.errors[0].message
    agent = scene.listener.dial()
    scene.settle()
    scene.ask()
    assert scene.leads_to(agent)
    scene.ask(0.0)
    scene.settle()
    assert "does not answer" in scene.errors[1].message


@pytest.mark.parametrize(("cid", "port"), [(CID + 1, 1000), (2, 1000), (CID, 1024), (CID, 70_000)])
def test_who_is_not_believed(scene: Scene, cid: int, port: int) -> None:
    stranger = scene.listener.dial(cid, port)
    scene.settle()
    assert stranger.recv(1) == b""
    scene.ask(0.0)
    scene.settle()
    assert scene.given == []


def test_a_new_connection_takes_the_place_of_the_old_one(scene: Scene) -> None:
    old = scene.listener.dial()
    scene.settle()
    new = scene.listener.dial()
    scene.settle()
    assert old.recv(1) == b""
    scene.ask()
    assert scene.leads_to(new)


def test_an_agent_that_goes_is_forgotten(scene: Scene) -> None:
    scene.listener.dial().close()
    scene.settle()
    scene.ask()
    assert scene.given == []
    agent = scene.listener.dial()
    scene.settle()
    assert scene.leads_to(agent)
