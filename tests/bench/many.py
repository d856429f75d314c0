# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: guests side by side, all at their prompt and idle.

usage: many.py '[COMMAND...]' COUNT

Prints as JSON the seconds from the first start to the last prompt, and by guest the megabytes (10^6 bytes) that the
host has less, and that are the processes' share (PSS), guest RAM included.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from bench.boots import PROMPT

SECONDS = 400.0
SETTLE = 3.0


def available() -> int:
    """Bytes of this host's memory."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def share(pid: int) -> int:
    """A process's bytes, of shared pages its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_prompts(guests: list[subprocess.Popen[bytes]]) -> None:
    seen = {guest.stdout.fileno(): b"" for guest in guests if guest.stdout}
    deadline = time.monotonic() + SECONDS
    while waiting := [fd for fd, text in seen.items() if PROMPT not in text]:
        ready = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            raise SystemExit(f"{len(waiting)} of {len(guests)} guests showed no prompt: {seen[waiting[0]]!r}")
        for fd in ready:
            data = os.read(fd, 1 << 16)
            if not data:
                raise SystemExit(f"a guest ended: {seen[fd]!r}")
            seen[fd] += data


def measure(command: list[str], count: int) -> dict[str, float]:
    """Seconds, and MB a guest."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    before, began = available(), time.monotonic()
    guests: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            guests.append(start(command))
        wait_for_prompts(guests)
        seconds = time.monotonic() - began
        time.sleep(SETTLE)
        less = before - available()
        shares = sum(share(guest.pid) for guest in guests)
        return {"seconds": seconds, "mb_less": less / count / 1e6, "mb_share": shares / count / 1e6}
    finally:
        for guest in guests:
            guest.kill()
            guest.wait()


def main() -> None:
    command = json.loads(sys.argv[1])
    measure(command, 1)  # fills the page cache
    print(json.dumps(measure(command, int(sys.argv[2]))))


if __name__ == "__main__":
    main()
