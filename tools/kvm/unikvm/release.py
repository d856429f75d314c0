# SPDX-License-Identifier: GPL-2.0-only
"""Which commit this is: `VERSION-gCOMMIT[-dirty]`, one string for both halves.

Run as a program it prints the string: the kernel half's build stamps it into unikvm.ko. An installed user half knows
its version alone.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def in_tree() -> bool:
    """Whether this is a checkout of the tree, not an installed package."""
    return os.path.exists(os.path.join(TREE, "kernel", "uapi")) and os.path.exists(os.path.join(TREE, "meson.build"))


def version() -> str:
    """The version that meson.build declares."""
    if not in_tree():
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            return installed("unikvm")
        except PackageNotFoundError:
            return "unknown"
    import re

    with open(os.path.join(TREE, "meson.build"), encoding="utf-8") as build:
        match = re.search(r"version: '([^']+)'", build.read())
    return match[1] if match else "unknown"


def release() -> str:
    """The version and, in a checkout, its commit; `-dirty` when the checkout differs from it."""
    # A tarball that was unpacked within somebody else's checkout is not that one's commit.
    if not in_tree() or not os.path.exists(os.path.join(TREE, ".git")):
        return version()
    commit = _commit(TREE)
    return f"{version()}-g{commit}" if commit else version()


def _commit(tree: str) -> str:
    """`COMMIT[-dirty]` of a checkout; empty where git has none. Not by `git describe --dirty`, which locks the index:
    a `git commit` of the user's at the same moment would fail."""
    import subprocess

    command = ["git", "-C", tree, "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    oid = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if oid == "(initial)":
        return ""
    return oid[:12] + ("-dirty" if any(line[:1] != "#" for line in lines) else "")


def kernel_build_id() -> str:
    """SHA-1 over the kernel half's sources, as hexadecimal: unikvm.ko carries it, so that a stale one is noticed."""
    if TYPE_CHECKING:
        from hashlib import sha1
    else:
        try:
            from _sha1 import sha1  # hashlib loads OpenSSL for it, which takes longer than to attach
        except ImportError:
            from hashlib import sha1

    sources = os.path.join(TREE, "kernel")
    total = sha1(usedforsecurity=False)
    for folder, folders, names in os.walk(sources):
        folders.sort()
        for name in sorted(names):
            if name.endswith((".c", ".h")) or name == "Kbuild":
                with open(os.path.join(folder, name), "rb") as file:
                    total.update(name.encode() + b"\0" + file.read())
    return total.hexdigest()


if __name__ == "__main__":
    print(release())
