# SPDX-License-Identifier: GPL-2.0-only
"""The guest's agent on this machine: `init --session`, one process a session, on socket pairs."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from unikvm.remote.frames import Stream

PATIENCE = 20.0

Open = Callable[[], tuple[Stream, "subprocess.Popen[bytes]"]]


@pytest.fixture
def agent(init_binary: str) -> Iterator[Open]:
    """Open a session: our end, and its process."""
    started: list[tuple[Stream, subprocess.Popen[bytes]]] = []

    def opened() -> tuple[Stream, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        high = os.dup(theirs.fileno())

        def connection() -> None:
            os.dup2(high, 3)

        process = subprocess.Popen(
            [init_binary, "--session"], preexec_fn=connection, pass_fds=(3,), stderr=subprocess.PIPE
        )
        os.close(high)
        theirs.close()
        started.append((Stream(ours), process))
        return started[-1]

    yield opened
    for stream, process in started:
        stream.close()
        try:
            process.wait(PATIENCE)
            assert process.stderr is not None
            assert b"runtime error" not in process.stderr.read(), "the sanitizer found something"
        finally:
            process.kill()
            process.wait()
