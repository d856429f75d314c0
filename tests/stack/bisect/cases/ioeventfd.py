# SPDX-License-Identifier: GPL-2.0-only
"""Whether a guest can crash the host by a store that an ioeventfd with datamatch gets half of.

Linux's ioeventfd_in_range() had a BUG_ON for data that is not aligned to its size ("KVM: Replace guest-triggerable
BUG_ON() in ioeventfd datamatch with get_unaligned()").

usage: ioeventfd.py straddle.elf
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine
from unikvm.machine.events import DebugExit

BELL = 0xD000_1000  # where the second part of the store goes

with Machine(kernel=sys.argv[1], console="serial") as machine:
    fd = os.eventfd(0)
    machine.parts.vm.ioeventfd(BELL, 8, fd, datamatch=1)
    end = machine.run(timeout=20)
    assert end == DebugExit(status=0), end
