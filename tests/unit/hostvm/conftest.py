# SPDX-License-Identifier: GPL-2.0-only
"""What the host VM's unit tests share: init served on socket pairs."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from unikvm import wire

PATIENCE = 20.0

Serve = Callable[[], tuple[dict[str, socket.socket], "subprocess.Popen[bytes]"]]


@pytest.fixture
def serve_init(init_binary: str) -> Iterator[Serve]:
    """Start `init --serve`: our ends of its ports by name, and its process. It is ended with the test."""
    started: list[tuple[dict[str, socket.socket], subprocess.Popen[bytes]]] = []

    def serve() -> tuple[dict[str, socket.socket], subprocess.Popen[bytes]]:
        pairs = [socket.socketpair() for _ in wire.PORTS]
        for _ours, theirs in pairs:
            theirs.setblocking(False)  # as init opens its ports
        high = [os.dup(theirs.fileno()) for _ours, theirs in pairs]  # off the numbers 3-6 that dup2 writes to

        def ports() -> None:
            for number, fd in enumerate(high):
                os.dup2(fd, 3 + number)

        process = subprocess.Popen([init_binary, "--serve"], preexec_fn=ports, pass_fds=range(3, 7))
        for fd in high:
            os.close(fd)
        for _ours, theirs in pairs:
            theirs.close()
        ours = {name: pair[0] for name, pair in zip(wire.PORTS, pairs, strict=True)}
        started.append((ours, process))
        return ours, process

    yield serve
    for ours, process in started:
        for sock in ours.values():
            sock.close()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
