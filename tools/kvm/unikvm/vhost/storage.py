# SPDX-License-Identifier: GPL-2.0-only
"""qemu-storage-daemon, which knows the image formats: one image, served as a vhost-user-blk device."""

from __future__ import annotations

import os
import stat

from unikvm.errors import CannotRun
from unikvm.sys.process import find_program
from unikvm.vhost.backend import Program

BINARY = "qemu-storage-daemon"


def arguments(
    binary: str, path: str, *, kind: str, readonly: bool, writethrough: bool, queues: int, direct: bool, fd: int
) -> list[str]:
    """The command line for the image `path` of format `kind`, and the listening socket `fd`."""
    import json

    cache = {"cache": {"direct": direct}, "read-only": readonly}
    file = {"driver": "file", "filename": os.path.abspath(path), "discard": "unmap", **cache}
    if stat.S_ISBLK(os.stat(path).st_mode):
        file["driver"] = "host_device"
    node = {"driver": kind, "node-name": "disk", "file": file, "discard": "unmap", **cache}
    address = {"type": "fd", "str": str(fd)}
    access = {"writable": not readonly, "writethrough": writethrough, "num-queues": queues}
    export = {"type": "vhost-user-blk", "id": "disk", "node-name": "disk", "addr": address, **access}
    return [binary, "--blockdev", json.dumps(node), "--export", json.dumps(export)]


def serve(
    path: str, *, kind: str, readonly: bool, writethrough: bool = False, queues: int = 1, direct: bool = False
) -> Program:
    """Start qemu-storage-daemon for an image. CannotRun where either cannot be had.

    `writethrough`: what is written is in the image before the guest has the answer, which is slow. Only then (or where
    nothing is written) may it be started again after its end: it keeps where an image's blocks are in its memory until
    the guest flushes.
    """
    binary = find_program(BINARY)
    if not binary:
        raise CannotRun(f"a {kind} image needs {BINARY}, which is not on this host", hint="`make setup` installs it")
    if not os.access(path, os.R_OK if readonly else os.R_OK | os.W_OK):
        what = "read" if readonly else "read and write"
        raise CannotRun(f"cannot {what} disk image {path}", hint="does it exist? or add ,ro" if not readonly else "")
    return Program(
        f"{BINARY} of {path}",
        lambda fd: arguments(
            binary, path, kind=kind, readonly=readonly, writethrough=writethrough, queues=queues, direct=direct, fd=fd
        ),
        again=readonly or writethrough,
        ends_alone=False,
    )
