# SPDX-License-Identifier: GPL-2.0-only
"""virtiofsd, the file server: found, told what to serve, and kept from writing where it must not.

Both programs of that name: QEMU's own in C (until 7.2), which takes -o options, and its successor in Rust.
"""

from __future__ import annotations

import os

from unikvm.sys.process import become_namespace_root, find_program, readonly_tree, spawn
from unikvm.vhost.backend import Program

PLACES = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/libexec/qemu/virtiofsd")
_C_OPTION = b"source=PATH"  # in the help of the one in C
# Newer ones in Rust announce them unasked, and overlayfs takes a mount point of the machine for one it cannot follow.
_PLAIN_SUBMOUNTS = "--no-announce-submounts"


def find() -> str:
    """The path of virtiofsd, or an empty string."""
    for path in PLACES:
        if os.access(path, os.X_OK):
            return path
    return find_program("virtiofsd")


def arguments(binary: str, path: str, *, readonly: bool, fd: int) -> list[str]:
    """Its command line for the directory `path` and the listening socket `fd`."""
    # Nothing changes below what is read-only while it is served; what is in a writable directory may.
    cache = "always" if readonly else "auto"
    source = place_of(path) if readonly else path
    with open(binary, "rb") as file:
        program = file.read()
    if _C_OPTION in program:
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        return [binary, f"--fd={fd}", "-f", "-o", f"source={escaped}", "-o", f"cache={cache}", "-o", "log_level=warn"]
    options = [_PLAIN_SUBMOUNTS] if _PLAIN_SUBMOUNTS.removeprefix("--").encode() in program else []
    return [binary, f"--fd={fd}", f"--shared-dir={source}", f"--cache={cache}", "--log-level=warn", *options]


def place_of(path: str) -> str:
    """Where virtiofsd's read-only view of `path` is: over itself, but `/`, into which virtiofsd cannot pivot."""
    if path != "/":
        return path
    return "/mnt" if os.path.isdir("/mnt") else "/tmp"


def serve(binary: str, path: str, *, readonly: bool) -> Program:
    """Start virtiofsd for the directory `path` (absolute). CannotRun where it, or its sandbox, cannot be had.

    `readonly`: in a mount name space of its own where nothing below `path` can be written, whatever it is asked to do.
    Without root it runs as root of a user name space, and most files belong to nobody then.
    """
    return Program(
        f"the file server of {path}",
        lambda fd: arguments(binary, path, readonly=readonly, fd=fd),
        prepare=lambda: _enclose(path, readonly=readonly),
    )


def _enclose(path: str, *, readonly: bool) -> None:
    """In the server's process: its name spaces. OSError."""
    become_namespace_root()
    if readonly:
        readonly_tree(path, place_of(path))


def try_out(binary: str) -> None:
    """Start it in the name spaces that a server of `/` needs, for its help. CannotRun where they are forbidden."""
    child = spawn([binary, "--help"], prepare=lambda: _enclose("/", readonly=True))
    child.end(5)
    child.close()


def mount_flags() -> list[str]:
    """`foreign` where most of a root's files are not the server's own (Documentation/host-vm.md)."""
    return ["foreign"] if os.getuid() else []
