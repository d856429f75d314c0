# SPDX-License-Identifier: GPL-2.0-only
"""Values of options: in the form that users of QEMU and kvmtool know, `FIRST[,FLAG][,KEY=VALUE]...`, and of --env."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun


def add_environment(found: dict[str, str], given: list[str]) -> None:
    """Put what the values of --env say into `found`: NAME=VALUE, or NAME as it is here, if it is."""
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise CannotRun(f"--env {text}: no name", hint="NAME=VALUE, or NAME for this machine's value")
        if equals or name in os.environ:
            found[name] = value if equals else os.environ[name]


def split(
    option: str, text: str, *, flags: tuple[str, ...] = (), keys: tuple[str, ...] = ()
) -> tuple[str, dict[str, str]]:
    """What stands first in the value `text` of `option`, and the rest by name; a flag that is given has the value "on".

    CannotRun for a name that is neither in `flags` nor in `keys`, and for one that comes twice.
    """
    first, *words = text.split(",")
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in (keys if equals else flags) or name in found:
            form = "".join([*(f"[,{flag}]" for flag in flags), *(f"[,{key}=…]" for key in keys)])
            what = "twice" if name in found else "not understood"
            raise CannotRun(f"{option} {text}: {word!r} is {what}", hint=f"{option} VALUE{form}")
        found[name] = value if equals else "on"
    return first, found


def check_image(path: str) -> None:
    """CannotRun where there is no image of a disk or a memory, before anything starts."""
    if not os.path.exists(path):
        raise CannotRun(f"no such image: {path}")
