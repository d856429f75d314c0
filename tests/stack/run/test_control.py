# SPDX-License-Identifier: GPL-2.0-only
"""A guest in a host VM, by its name, from another process of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unikvm.errors import CANNOT_RUN
from unikvm.images.artifacts import LAUNCHER

SECONDS = 120.0


class Guests:
    """Guests and questions of one user, whose runtime directory is the test's."""

    def __init__(self, directory: Path) -> None:
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [LAUNCHER, "run", "--host", "vm", *options],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([LAUNCHER, *words], env=self.environment, capture_output=True, text=True, timeout=SECONDS)

    def wait_for(self, name: str) -> dict[str, object]:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            done = self.ask("stat", name, "--json")
            if not done.returncode:
                stat: dict[str, object] = json.loads(done.stdout)
                return stat
            time.sleep(0.2)
        raise AssertionError(f"no guest {name}: {done.stderr}")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Guests]:
    guests = Guests(tmp_path)
    yield guests
    guests.close()


def test_a_named_guest_is_seen_asked_and_stopped(guests: Guests) -> None:
    process = guests.start("-n", "lab", "-m", "128M", "--", "sleep", "1000")
    stat = guests.wait_for("lab")
    assert stat["pid"] == process.pid
    assert stat["memory"] == "128M"
    assert guests.ask("list").stdout.splitlines()[1].split()[:2] == ["lab", str(process.pid)]
    assert "cpuid" in guests.ask("stat", "--exits").stdout
    refused = guests.ask("set", "lab", "no-such=1")
    assert refused.returncode == CANNOT_RUN
    assert "no setting 'no-such'" in refused.stderr
    twin = guests.start("-n", "lab", "--", "true")
    assert twin.wait(SECONDS) == CANNOT_RUN
    assert twin.stderr is not None
    assert b"a guest with the name lab runs already" in twin.stderr.read()
    stopped = guests.ask("stop", "lab")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert process.wait(SECONDS) == 0
    assert "no guest runs" in guests.ask("list").stderr


def test_memory_is_taken_and_given_by_name(guests: Guests) -> None:
    """As the guest says itself when it is asked for `stat`."""
    guests.start("-n", "lab", "-m", "192M,balloon,max=448M", "--", "sleep", "1000")
    guests.wait_for("lab")

    def wait_until(there: str, least: int, most: int) -> None:
        deadline = time.monotonic() + SECONDS
        memory: dict[str, Any] = {}
        while time.monotonic() < deadline:
            memory = json.loads(guests.ask("stat", "lab", "--json").stdout)["memory now"]
            said = memory["in the guest"]
            if memory["there"] == there and "total" in said and least <= int(said["total"].rstrip("M")) <= most:
                return
            time.sleep(0.2)
        raise AssertionError(memory)

    wait_until("192M", 140, 192)
    assert guests.ask("set", "lab", "mem=448M").returncode == 0
    wait_until("448M", 396, 448)
    assert guests.ask("set", "lab", "mem=160M").returncode == 0
    wait_until("160M", 108, 160)
    refused = guests.ask("set", "lab", "mem=1G")
    assert "the guest's memory goes from 16M to 448M, not to 1G" in refused.stderr


def test_the_name_of_a_killed_front_end_is_free(guests: Guests) -> None:
    process = guests.start("-n", "lab", "--", "sleep", "1000")
    guests.wait_for("lab")
    process.kill()
    process.wait()
    assert guests.ask("stat", "lab").returncode == CANNOT_RUN
    assert guests.ask("list").stdout == ""
