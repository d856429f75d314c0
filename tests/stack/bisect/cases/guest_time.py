# SPDX-License-Identifier: GPL-2.0-only
"""TEST: a guest that only counts spends time in the guest. usage: guest_time.py COUNT_PAYLOAD"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine
from unikvm.observe import exits

with Machine(kernel=sys.argv[1], cmdline="n=200000", memory="16M", console="serial") as machine:
    end = machine.run(timeout=10)
    if end.outcome:
        sys.exit(f"the payload ended with {end}")
    if machine.parts.companion is None:
        print("no kernel half", file=sys.stderr)
        sys.exit(125)
    seen = exits.read(machine.parts.companion)
    if not seen.guest_seconds:
        sys.exit(f"no time in the guest, {seen.kernel_seconds:.6f} s in the kernel")
