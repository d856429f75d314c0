# SPDX-License-Identifier: GPL-2.0-only
"""TEST: two vCPUs that ran are shown as two. usage: two_vcpus.py SMP_PAYLOAD"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine

with Machine(kernel=sys.argv[1], cmdline="cpus=2", cpus=2, memory="16M", console="serial") as machine:
    end = machine.run(timeout=10)
    if end.outcome:
        sys.exit(f"the payload ended with {end}")
    if machine.parts.companion is None:
        print("no kernel half", file=sys.stderr)
        sys.exit(125)
    shown = len(machine.parts.companion.slots())
    if shown != 2:
        sys.exit(f"{shown} of 2 vCPUs are shown")
