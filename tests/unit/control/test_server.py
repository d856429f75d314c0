# SPDX-License-Identifier: GPL-2.0-only
"""Requests and answers between real processes' ends."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unikvm.cli import reach
from unikvm.control import client, names
from unikvm.control.server import Bytes, Later, Server
from unikvm.errors import CannotRun, UnikvmError
from unikvm.sys.eventloop import EventLoop


@pytest.fixture
def server(loop: EventLoop, runtime: Path) -> Iterator[Server]:
    claim = names.claim("lab", exact=True)
    server = Server(loop)
    reach.listen(loop, claim, server.serve)
    yield server
    claim.close()


def test_answers_and_errors(server: Server) -> None:
    server.command("add", lambda arguments: arguments["a"] + arguments["b"])

    def refuse(_arguments: object) -> None:
        raise UnikvmError("it says no", hint="do not ask")

    server.command("refuse", refuse)
    assert client.call("lab", "add", a=1, b=2) == 3
    for command, why in (
        ("refuse", r"it says no \(do not ask\)"),
        ("nothing", r"no command 'nothing' \(one of add, refuse\)"),
        ("add", "add: KeyError: 'a'"),
    ):
        with pytest.raises(UnikvmError, match=why):
            client.call("lab", command)


def test_an_answer_that_comes_later(server: Server, loop: EventLoop) -> None:
    server.command("wait", lambda _: Later(lambda reply, _fail: loop.call_later(0.05, lambda: reply("done"))))
    server.command("fail", lambda _: Later(lambda _reply, fail: fail(UnikvmError("late no"))))
    assert client.call("lab", "wait") == "done"
    with pytest.raises(UnikvmError, match="late no"):
        client.call("lab", "fail")
    server.command("never", lambda _: Later(lambda _reply, _fail: None))
    with pytest.raises(UnikvmError, match=r"does not answer within 0.1 s"):
        client.call("lab", "never", seconds=0.1)
    assert client.call("lab", "wait") == "done"


def test_a_stream(server: Server) -> None:
    def echo(_arguments: object) -> Bytes:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            with ours:
                while data := ours.recv(1 << 16):
                    ours.sendall(data)

        threading.Thread(target=serve).start()
        return Bytes(theirs.detach())

    server.command("echo", echo)
    sock = client.stream("lab", "echo")
    text = os.urandom(1_000_000)

    def send() -> None:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=send).start()
    got = bytearray()
    while part := sock.recv(1 << 16):
        got += part
    sock.close()
    assert got == text


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"1", b'{"execute": 1}', b'{"execute": "stat", "arguments": 1}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_request(server: Server, line: bytes) -> None:
    sock = names.connect("lab")
    sock.settimeout(5)
    sock.sendall(line + b"\n")
    assert "not a request" in json.loads(sock.recv(1 << 16))["error"]["desc"]
    sock.sendall(b'{"execute": "none"}\n')
    assert "no command" in json.loads(sock.recv(1 << 16))["error"]["desc"]
    sock.close()


def test_a_line_without_end(server: Server) -> None:
    sock = names.connect("lab")
    sock.settimeout(5)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        sock.sendall(bytes(64 << 20))
    sock.close()


def test_names(runtime: Path) -> None:
    first = names.claim("lab", exact=True)
    with pytest.raises(CannotRun, match="runs already"):
        names.claim("lab", exact=True)
    second = names.claim("lab", exact=False)
    assert second.name == "lab-2"
    assert names.running() == ["lab", "lab-2"]
    with pytest.raises(CannotRun, match=r"several guests run.*lab, lab-2"):
        client.choose(None)
    second.close()
    assert client.choose(None) == "lab"
    first.close()
    first.close()
    assert names.running() == []
    with pytest.raises(CannotRun, match="no guest runs"):
        client.choose(None)
    for wrong in ("../x", "a b", "", "ü", "x" * 40):
        with pytest.raises(CannotRun):
            names.claim(wrong, exact=True)
    with pytest.raises(CannotRun, match="no guest 'nobody' runs"):
        names.connect("nobody")


def test_the_name_of_a_guest_that_was_killed_is_free(runtime: Path) -> None:
    pid = os.fork()
    if not pid:
        names.claim("lab", exact=True)
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(runtime.glob("*/guests/lab"))) == 1
    names.claim("lab", exact=True).close()
    assert list(runtime.glob("*/guests/lab")) == []
