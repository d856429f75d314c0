# SPDX-License-Identifier: GPL-2.0-only
"""TEST: as many exits as there are reasons for them. usage: accounting.py STORM_PAYLOAD"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine
from unikvm.observe import exits

with Machine(kernel=sys.argv[1], cmdline="out n=50", memory="16M", console="serial") as machine:
    end = machine.run(timeout=10)
    if end.outcome:
        sys.exit(f"the payload ended with {end}")
    if machine.parts.companion is None:
        print("no kernel half", file=sys.stderr)
        sys.exit(125)
    seen = exits.read(machine.parts.companion)
    if seen.exits != sum(seen.by_reason.values()):
        sys.exit(f"{seen.exits} exits, and {sum(seen.by_reason.values())} by reason")
