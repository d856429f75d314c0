# SPDX-License-Identifier: GPL-2.0-only
"""slirp4netns: how it is started, the real one, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.vhost import slirp

MAC = bytes.fromhex("525400123456")
ARP = b"\xff" * 6 + MAC + bytes.fromhex("08060001080006040001") + MAC + bytes([10, 0, 2, 15, *bytes(6), 10, 0, 2, 2])
PORT = 28082

needs_slirp = pytest.mark.skipif(shutil.which(slirp.PROGRAM) is None, reason="no slirp4netns")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_requests_are_json() -> None:
    assert json.loads(slirp.forward_request("53:5353/udp")) == {
        "execute": "add_hostfwd",
        "arguments": {
            "proto": "udp",
            "host_addr": "127.0.0.1",
            "host_port": 53,
            "guest_addr": "10.0.2.15",
            "guest_port": 5353,
        },
    }


def test_a_host_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slirp.serve() is None


def test_a_program_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / slirp.PROGRAM).symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match="does not start: it ended with status 1"):
        slirp.serve()


@needs_slirp
def test_the_real_one(runtime: Path) -> None:
    """It answers, leads a port to us, leaves no file, and is there again after a kill -9."""
    backend = slirp.serve([f"{PORT}:80"])
    assert backend is not None
    for _ in range(2):
        line = backend.open()
        line.settimeout(10)
        line.send(ARP)
        assert line.recv(99)[6:12] == bytes.fromhex("52550a000202")
        socket.create_connection(("127.0.0.1", PORT)).close()
        assert line.recv(99)[12:14] == b"\x08\x00"
        assert not list(runtime.glob("unikvm-*/slirp/*"))
        os.kill(backend.pid, 9)
        assert not line.recv(99)
        assert "signal 9" in backend.why()
        line.close()
        backend.stop()
    backend.close()


@needs_slirp
def test_ports_that_are_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(CannotRun, match=f"port {port}: Address already in use"):
            slirp.serve([f"{port}:80"])
    with pytest.raises(CannotRun, match=r"slirp4netns: .*error"):  # two want the same, which the first has not had yet
        slirp.serve([f"{PORT}:80", f"{PORT}:81"])
