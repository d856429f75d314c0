# SPDX-License-Identifier: GPL-2.0-only
"""TEST: a payload that sleeps until its serial port interrupts hears what is typed. usage: echo.py ECHO_PAYLOAD"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine

with Machine(kernel=sys.argv[1], memory="16M", console="serial") as machine:
    machine.start()
    machine.expect(b"ready\n", timeout=10)
    machine.send(b"q")
    end = machine.wait(timeout=3)
    if end.outcome:
        sys.exit(f"no interrupt: {end}")
