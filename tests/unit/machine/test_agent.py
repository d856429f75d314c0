# SPDX-License-Identifier: GPL-2.0-only
"""The agent, against the built init itself (`init --serve` on any Linux), its ports joined by socket pairs."""

from __future__ import annotations

import errno
import os

import pytest

from unikvm import wire
from unikvm.errors import CANNOT_RUN
from unikvm.machine.agent import Agent
from unikvm.machine.events import CommandExit, Event, Hang, VmmFailure
from unikvm.sys.eventloop import EventLoop


class Peer:
    """The guest's init as lines: what the agent sent, and what to answer."""

    def __init__(self, **options: object) -> None:
        self.events: list[Event] = []
        null = os.open(os.devnull, os.O_RDWR)
        options.setdefault("console", True)
        self.agent = Agent(("true",), self.events.append, stdin=null, **options)  # type: ignore[arg-type]
        os.close(null)
        self.sent: list[bytes] = []
        ctl = self.agent.ports[0]
        ctl.send = self.sent.append  # type: ignore[assignment,method-assign]
        self.loop = EventLoop()
        self.agent.start(self.loop)

    def says(self, *words: str) -> None:
        self.agent._received(wire.encode(*words))


def test_ready_gets_the_request_and_exit_ends_the_run() -> None:
    peer = Peer()
    peer.says("ready", wire.PROTOCOL)
    assert peer.sent[0].startswith(b"exec ")
    peer.says("ok", "17")
    peer.says("exit", "status", "3", "0", "0")
    assert peer.events == [CommandExit(3)]


def test_a_signal_is_a_shells_status() -> None:
    peer = Peer()
    for words in (("ready", wire.PROTOCOL), ("ok", "17"), ("exit", "signal", "9", "0", "0")):
        peer.says(*words)
    assert peer.events == [CommandExit(137)]


def test_a_command_that_cannot_start_could_not_run() -> None:
    peer = Peer()
    peer.says("ready", wire.PROTOCOL)
    peer.says("error", "nonsense: No such file or directory")
    assert [event.outcome for event in peer.events] == [CANNOT_RUN]
    assert "nonsense" in peer.events[0].detail


@pytest.mark.parametrize("line", [b"exit status x 0 0\n", b"exit status\xff%G\n"])
def test_garbage_ends_the_run_once(line: bytes) -> None:
    peer = Peer()
    peer.agent._received(line)
    peer.agent._received(line)
    assert len(peer.events) <= 1
    assert all(isinstance(event, VmmFailure) for event in peer.events)


def test_another_protocol_is_refused() -> None:
    peer = Peer()
    peer.says("ready", "0")
    assert "protocol 0" in peer.events[0].detail


def test_the_watchdog_pings_and_then_calls_it_a_hang() -> None:
    peer = Peer(watchdog=0.01)
    peer.says("ready", wire.PROTOCOL)
    peer.loop.call_later(0.05, peer.loop.stop)
    peer.loop.run()
    assert wire.encode("ping") in peer.sent
    assert [type(event) for event in peer.events] == [Hang]


def test_what_has_to_be_done_before_the_command_is_done_in_turn() -> None:
    peer = Peer(setup=[("root", "virtiofs", "root", ""), ("share", "virtiofs", "rw0", "/with space")])
    peer.says("ready", wire.PROTOCOL)
    assert peer.sent == [b"root virtiofs root \n"]
    peer.says("ok")
    assert peer.sent[1:] == [b"share virtiofs rw0 /with%20space\n"]
    peer.says("ok")
    assert peer.sent[2].startswith(b"exec ")
    peer.says("ok", "17")
    peer.says("exit", "status", "3", "0", "0")
    assert peer.events == [CommandExit(3)]


def test_without_its_root_a_command_does_not_run() -> None:
    peer = Peer(setup=[("root", "virtiofs", "root", "")])
    peer.says("ready", wire.PROTOCOL)
    peer.says("error", "virtiofs: No such device")
    assert len(peer.sent) == 1
    assert [(event.outcome, event.detail) for event in peer.events] == [
        (CANNOT_RUN, "in the guest: virtiofs: No such device")
    ]


def test_files_are_written_out_before_the_end() -> None:
    peer = Peer(user="5:6")
    for words in (("ready", wire.PROTOCOL), ("ok", "17"), ("exit", "status", "0", "0", "0")):
        peer.says(*words)
    assert b" user=5:6 " in peer.sent[0]
    done: list[bool] = []
    peer.agent.sync(60, lambda: done.append(True))
    assert peer.sent[-1] == b"sync\n"
    assert not done
    peer.says("ok")
    assert done == [True]


@pytest.mark.parametrize(("number", "outcome"), [(errno.EPIPE, None), (errno.ENOSPC, CANNOT_RUN)])
def test_output_that_cannot_be_written(number: int, outcome: int | None) -> None:
    """Nobody reads: the command is told. No room: the run is no success, whatever the command says."""
    peer = Peer(console=False)
    for port in peer.agent.ports:
        if port.name == wire.PORT_STDOUT:
            assert port._on_sink_lost is not None
            port._on_sink_lost(OSError(number, os.strerror(number)))
    assert [event.outcome for event in peer.events] == ([] if outcome is None else [outcome])
    assert peer.sent == ([b"hangup stdout\n"] if outcome is None else [])
