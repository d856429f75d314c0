# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: resident memory of each VMM without guest RAM, while its guest waits at the prompt.

usage: resident.py '{"NAME": [COMMAND...], ...}'

Prints MB (10^6 bytes) as JSON: all resident pages, and the private dirty ones. Guest RAM is the one mapping of 256 MiB
(a memfd here, anonymous memory in QEMU), which is left out.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

from bench.boots import PROMPT

GUEST_RAM_KB = 256 << 10


def resident(pid: int) -> tuple[int, int]:
    """(resident, private dirty) kB of a process without guest RAM."""
    total = dirty = 0
    skip = False
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as smaps:
        for line in smaps:
            key, _, value = line.partition(":")
            if key == "Size":
                skip = int(value.split()[0]) >= GUEST_RAM_KB
            elif not skip and key == "Rss":
                total += int(value.split()[0])
            elif not skip and key == "Private_Dirty":
                dirty += int(value.split()[0])
    return total, dirty


def main() -> None:
    figures = {}
    for name, command in json.loads(sys.argv[1]).items():
        master, slave = pty.openpty()
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        seen = b""
        while PROMPT not in seen:
            seen += os.read(master, 65536)
        total, dirty = resident(process.pid)
        figures[f"{name}_mb"] = total * 1024 / 1e6
        figures[f"{name}_private_mb"] = dirty * 1024 / 1e6
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
