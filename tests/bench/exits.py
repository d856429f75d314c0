# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM under icount, where a nanosecond is an instruction: prints instructions per exit, as JSON.

usage: exits.py STORM_PAYLOAD absent|loaded|attached

The last is what the kernel half must be: not loaded, loaded and not attached, or attached and counting by reason.
"""

from __future__ import annotations

import json
import sys
import time

from unikvm import Machine
from unikvm.observe import exits
from unikvm.sys import companion

FEW, MANY = 500, 4500
KINDS = {
    "cpuid": "cpuid",
    "pio_in": "in port=0xf4",  # isa-debug-exit reads as 0: dispatch and nothing more
    "pio_out": "out",  # the scratch register of the serial port, under its lock
    "mmio_read": "mmio address=0xd0000000",
}


def instructions(payload: str, kind: str, count: int, attached: bool) -> int:
    """Of one whole run with `count` exits."""
    with Machine(
        kernel=payload, memory="16M", console="serial", cmdline=f"{kind} n={count}", kernel_half=attached
    ) as machine:
        if kind.startswith("mmio"):
            machine.on_mmio(range(0xD000_0000, 0xD000_1000), lambda access: 0)
        before = time.monotonic_ns()
        machine.run(timeout=120)
        spent = time.monotonic_ns() - before
        check_counts(machine.parts.companion, count if attached else 0)
        return spent


def check_counts(half: companion.Companion | None, count: int) -> None:
    """What is measured must be the real thing: every exit counted, and by its reason."""
    counted = exits.read(half).by_reason if half else {}
    assert sum(number for reason, number in counted.items() if reason != "other") >= count, counted
    assert bool(half) == bool(count)


def main() -> None:
    payload, state = sys.argv[1:]
    assert (companion.info() is None) == (state == "absent"), state
    result = {}
    for name, kind in KINDS.items():
        # The first run is to warm up.
        _, few, many = [instructions(payload, kind, count, state == "attached") for count in (FEW, FEW, MANY)]
        result[name] = round((many - few) / (MANY - FEW))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
