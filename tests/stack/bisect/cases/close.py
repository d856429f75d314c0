# SPDX-License-Identifier: GPL-2.0-only
"""TEST: the companion of a VM that never ran closes at once. usage: close.py

A child closes it, so that the test has a time-out of its own even where close() cannot be interrupted.
"""

from __future__ import annotations

import os
import sys
import time

sys.path.insert(0, os.path.join(os.environ["UNIKVM_TREE"], "tools/kvm"))

from unikvm.sys import companion
from unikvm.sys.kvm import Kvm

SECONDS = 4.0  # two grace periods take 0.1


def close_one() -> None:
    """Does not keep this test's pipes open: whoever waits for their end would wait for it."""
    silent = os.open(os.devnull, os.O_RDWR)
    vm = Kvm().create_vm()
    attached = companion.attach(vm.fd)
    for fd in range(3):
        os.dup2(silent, fd)
    if attached is None:
        os._exit(125)
    attached.close()
    os._exit(0)


child = os.fork()
if child == 0:
    close_one()
deadline = time.monotonic() + SECONDS
while time.monotonic() < deadline:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.02)
sys.exit(f"close() of a companion takes more than {SECONDS:g} s")
