# SPDX-License-Identifier: GPL-2.0-only
"""The axis of host kernels: packages between two releases, files, or a mixture."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images.kernel import by_version, parts_of
from unikvm.images.packages import IMAGE, known_packages

FLAVOUR = "cloud-amd64"  # of a release that names none


def kernels_of(text: str) -> tuple[str, ...]:
    """The kernels that `text` names, from good to bad. Raises CannotRun.

    Releases, `FIRST..LAST`, or paths of a .deb, bzImage or build tree, with commas between them.
    """
    found: list[str] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if os.path.exists(word):
            found.append(os.path.abspath(word))
        elif ".." in word:
            found += _between(*word.split("..", 1))
        else:
            found.append(_full(word))
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice:
        raise CannotRun(f"--host-kernels names {twice} twice")
    if not found:
        raise CannotRun("--host-kernels names no kernel", hint="6.1.0-47..6.1.0-56, or files with commas between them")
    return tuple(found)


def _full(name: str) -> str:
    """A release with its flavour."""
    if "/" in name or name.endswith((".deb", "bzImage", "vmlinux")):
        raise CannotRun(f"no such kernel: {name}")
    name = name.removeprefix(IMAGE)
    return name if parts_of(name)[1] else f"{name}-{FLAVOUR}"


def _between(first: str, last: str) -> list[str]:
    """The packages of one flavour from `first` to `last`, in order."""
    first, last = _full(first), _full(last)
    flavour = parts_of(first)[1]
    if parts_of(last)[1] != flavour:
        raise CannotRun(f"{first} and {last} are of two flavours")
    releases = [name.removeprefix(IMAGE) for name in known_packages(IMAGE)]
    releases = sorted(
        {name for name in releases if parts_of(name)[1] == flavour and name[:1].isdigit()}, key=by_version
    )
    for end in (first, last):
        if end not in releases:
            near = ", ".join(releases[-3:]) or "none"
            raise CannotRun(f"there is no package for {end}", hint=f"the newest of {flavour}: {near}")
    low, high = releases.index(first), releases.index(last)
    span = releases[min(low, high) : max(low, high) + 1]
    return span if low <= high else span[::-1]
