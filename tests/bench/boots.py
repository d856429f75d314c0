# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM under icount: boots the same guest with each VMM in turn, from process start to init's prompt.

usage: boots.py '{"NAME": [COMMAND...], ...}' RUNS [MARK]

With MARK to where the terminal shows that instead. Prints, as JSON, the median of the instructions (in 10^9) and of the
exits that KVM counted.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = b"# "
SECONDS = 300.0


def exits() -> int:
    """What KVM counted in all VMs that there are."""
    path = Path("/sys/kernel/debug/kvm/exits")
    return int(path.read_text()) if path.exists() else 0


def boot(command: list[str], mark: bytes) -> tuple[int, int]:
    """(instructions, exits) until the terminal shows `mark`."""
    master, slave = pty.openpty()
    before = time.monotonic_ns()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + SECONDS
    while mark not in seen:
        if not select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise SystemExit(f"{command[0]} showed no {mark!r}: {seen!r}")
        try:
            seen += os.read(master, 65536)
        except OSError:
            raise SystemExit(f"{command[0]} ended: {seen!r}") from None
    instructions = time.monotonic_ns() - before
    count = exits()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.close(master)
    return instructions, count


def main() -> None:
    subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=False, stderr=subprocess.DEVNULL)
    commands: dict[str, list[str]] = json.loads(sys.argv[1])
    mark = sys.argv[3].encode() if len(sys.argv) > 3 else PROMPT
    runs: dict[str, list[tuple[int, int]]] = {name: [] for name in commands}
    for name, command in commands.items():
        boot(command, mark)  # fills the page cache
        print(f"bench: {name} booted, {time.monotonic():.0f} s of the host VM", file=sys.stderr, flush=True)
    for _ in range(int(sys.argv[2])):
        for name, command in commands.items():
            runs[name].append(boot(command, mark))
    figures = {}
    for name, results in runs.items():
        figures[f"{name}_ginsn"] = statistics.median(instructions for instructions, _ in results) / 1e9
        figures[f"{name}_exits"] = statistics.median(count for _, count in results)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
