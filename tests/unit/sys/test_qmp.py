# SPDX-License-Identifier: GPL-2.0-only
"""The monitor's client against a scripted monitor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest

from unikvm.sys.qmp import Qmp, QmpError, QmpRefusal

Script = Callable[[socket.socket], None]


def talk(script: Script, client: Callable[[Qmp], object]) -> object:
    ours, theirs = socket.socketpair()
    monitor = threading.Thread(target=script, args=(theirs,))
    monitor.start()
    qmp = Qmp(ours)
    try:
        return client(qmp)
    finally:
        qmp.close()
        monitor.join()
        theirs.close()


def test_greeting_commands_and_events() -> None:
    got: list[object] = []

    def script(sock: socket.socket) -> None:
        sock.sendall(b'{"QMP": {}}\r\n')
        got.append(json.loads(sock.recv(1000)))
        sock.sendall(b'{"event": "RESUME"}\r\n{"ret')
        sock.sendall(b'urn": {}}\r\n')
        got.append(json.loads(sock.recv(1000)))
        sock.sendall(b'{"return": {"status": "running"}}\n')

    def client(qmp: Qmp) -> object:
        qmp.connect(10)
        return qmp.execute("query-status", {"a": 1})

    assert talk(script, client) == {"status": "running"}
    assert got == [{"execute": "qmp_capabilities"}, {"execute": "query-status", "arguments": {"a": 1}}]


def test_descriptors_are_passed() -> None:
    read, write = os.pipe()

    def script(sock: socket.socket) -> None:
        _data, fds, _flags, _address = socket.recv_fds(sock, 1000, 4)
        os.write(fds[0], b"through")
        os.close(fds[0])
        sock.sendall(b'{"return": {}}\n')

    talk(script, lambda qmp: qmp.execute("getfd", {"fdname": "x"}, fds=[write]))
    assert os.read(read, 100) == b"through"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": {"class": "GenericError", "desc": "no such device"}}\n', "cont: no such device"),
        (b"nonsense\n", "said b'nonsense'"),
        (b"[1]\n", "said"),
        (b"", "closed"),
    ],
)
def test_bad_answers(answer: bytes, message: str) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)

    with pytest.raises(QmpError, match=message) as caught:
        talk(script, lambda qmp: qmp.execute("cont"))
    assert isinstance(caught.value, QmpRefusal) == (b"error" in answer)


def test_silence_is_an_error() -> None:
    with pytest.raises(QmpError, match="timed out"):
        talk(lambda _sock: None, lambda qmp: qmp.execute("cont", timeout=0.1))


def test_an_answer_without_end_is_an_error() -> None:
    def script(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"x" * 65536)

    with pytest.raises(QmpError, match="does not come to an end"):
        talk(script, lambda qmp: qmp.execute("cont"))


def test_events_do_not_prolong_the_wait() -> None:
    def script(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                sock.sendall(b'{"event": "RESUME"}\n')
                time.sleep(0.05)

    before = time.monotonic()
    with pytest.raises(QmpError, match="timed out"):
        talk(script, lambda qmp: qmp.execute("cont", timeout=0.3))
    assert time.monotonic() - before < 4
