# SPDX-License-Identifier: GPL-2.0-only
"""What unit tests of several rooms share: the guest's init, built for this machine, and a running event loop."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unikvm.sys.eventloop import EventLoop

GUEST = Path(__file__).parents[2] / "tools" / "kvm" / "guest"


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """init with the undefined-behaviour sanitizer."""
    binary = tmp_path_factory.mktemp("init") / "init"
    sources = sorted(map(str, GUEST.glob("*.c")))
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    subprocess.run(["gcc", *flags, "-o", str(binary), *sources], check=True)
    return str(binary)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """An event loop that runs on a thread of its own."""
    loop = EventLoop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()
    loop.close()
