# SPDX-License-Identifier: GPL-2.0-only
"""TEST: after a VM and a refused second one nobody uses the module. usage: leak.py HELLO_PAYLOAD"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm import Machine
from unikvm.sys import companion


def uses() -> int:
    with open("/sys/module/unikvm/refcnt", encoding="ascii") as file:
        return int(file.read())


if not os.path.exists("/sys/module/unikvm"):
    print("no kernel half", file=sys.stderr)
    sys.exit(125)
before = uses()
with Machine(kernel=sys.argv[1], memory="16M", console="serial") as machine:
    end = machine.run(timeout=10)
    if end.outcome:
        sys.exit(f"the payload ended with {end}")
    if companion.attach(machine.parts.vm.fd) is not None:
        sys.exit("a second companion was given")
if uses() != before:
    sys.exit(f"{uses()} uses of the module are left, before there were {before}")
