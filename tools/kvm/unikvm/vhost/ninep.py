# SPDX-License-Identifier: GPL-2.0-only
"""Our own file server (unikvm/p9) as a back end, for hosts without virtiofsd: started, and kept from writing where it
must not, as virtiofsd is.
"""

from __future__ import annotations

import os
import sys

from unikvm.sys.process import become_namespace_root, readonly_tree
from unikvm.vhost.backend import Program
from unikvm.vhost.virtiofsd import place_of

_SERVER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "p9", "__main__.py")
# Without extended attributes the guest, overlayfs above all, does not ask for some of each file in vain.
_COMMON = "trans=virtio,version=9p2000.L,msize=512000,noxattr"


def serve(path: str, *, readonly: bool) -> Program:
    """Start the server for the directory `path` (absolute). CannotRun where it cannot be had."""
    source = place_of(path) if readonly else path

    def prepare() -> None:
        become_namespace_root()
        if readonly:
            readonly_tree(path, source)

    return Program(
        f"the file server of {path}",
        lambda fd: [sys.executable, "-I", "-S", _SERVER, str(fd), source],
        prepare=prepare,
        connected=True,
    )


def options(*, readonly: bool) -> str:
    """How the guest mounts it: what cannot change is cached for ever, the rest only while it is mapped."""
    return f"{_COMMON},cache={'loose' if readonly else 'mmap'}"
