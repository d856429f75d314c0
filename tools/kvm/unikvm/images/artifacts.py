# SPDX-License-Identifier: GPL-2.0-only
"""Where the build put things: build/RELEASE of a checkout for each host kernel, the package itself when installed."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.release import TREE, in_tree

BUILD = os.path.join(TREE, "build")
LAUNCHER = os.path.join(TREE, "scripts", "unikvm")


def kernel_half(release: str) -> str | None:
    """unikvm.ko for the kernel `release`, or None where it was not built."""
    path = os.path.join(BUILD, release, "kernel", "unikvm.ko")
    return path if in_tree() and os.path.exists(path) else None


def init_binary() -> str:
    """The static init of guests and host VMs: the newest that was built. CannotRun when there is none."""
    found = []
    if in_tree() and os.path.isdir(BUILD):
        candidates = [os.path.join(BUILD, name, "tools/kvm/guest/init") for name in os.listdir(BUILD)]
        found = [path for path in candidates if os.path.exists(path)]
    packaged = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "guest", "init")
    if os.path.exists(packaged):
        found.append(os.path.realpath(packaged))
    if not found:
        raise CannotRun("the guest's init is not built", hint="`make build` builds it; it needs gcc and a static libc")
    return max(found, key=os.path.getmtime)
