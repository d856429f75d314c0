# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM under icount, where a nanosecond is an instruction: prints instructions per exit, as JSON.

usage: exits.py STORM_PAYLOAD
"""

from __future__ import annotations

import json
import sys
import time

from unikvm import Machine

FEW, MANY = 500, 4500
KINDS = {
    "cpuid": "cpuid",
    "pio_in": "in port=0xf4",  # isa-debug-exit reads as 0: dispatch and nothing more
    "pio_out": "out",  # the scratch register of the serial port, under its lock
    "mmio_read": "mmio address=0xd0000000",
}


def instructions(payload: str, kind: str, count: int, kernel_half: bool) -> int:
    """Of one whole run with `count` exits."""
    with Machine(
        kernel=payload, memory="16M", console="serial", cmdline=f"{kind} n={count}", kernel_half=kernel_half
    ) as machine:
        if kind.startswith("mmio"):
            machine.on_mmio(range(0xD000_0000, 0xD000_1000), lambda access: 0)
        before = time.monotonic_ns()
        machine.run(timeout=120)
        return time.monotonic_ns() - before


def main() -> None:
    payload = sys.argv[1]
    result = {}
    for half in (False, True):
        for name, kind in KINDS.items():
            instructions(payload, kind, FEW, half)  # warm
            few = instructions(payload, kind, FEW, half)
            many = instructions(payload, kind, MANY, half)
            result[f"{name}{'_attached' if half else ''}"] = round((many - few) / (MANY - FEW))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
