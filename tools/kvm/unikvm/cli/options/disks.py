# SPDX-License-Identifier: GPL-2.0-only
"""A disk of the guest, as its user writes it: --disk, and of `unikvm set` disk=."""

from __future__ import annotations

import os

from unikvm.cli.options.values import split
from unikvm.errors import CannotRun
from unikvm.machine.config import Disk, format_of
from unikvm.units import parse_size

FLAGS = ("ro", "direct", "writethrough")
KEYS = ("serial", "format", "queues")


def parse_disk(text: str) -> Disk:
    """A Disk of `FILE[,ro][,serial=S][,format=F][,direct][,writethrough][,queues=N]`; without a format the file's name
    says it."""
    path, given = split("--disk", text, flags=FLAGS, keys=KEYS)
    queues = given.get("queues", "1")
    if not queues.isdecimal():
        raise CannotRun(f"--disk {text}: no number of queues: {queues!r}", hint="queues=4")
    return Disk(
        path,
        readonly="ro" in given,
        serial=given.get("serial", ""),
        kind=given.get("format") or format_of(path),
        writethrough="writethrough" in given,
        queues=int(queues),
        direct="direct" in given,
    )


def parse_growth(text: str) -> dict[str, object]:
    """What `FILE[,size=SIZE]` says of a disk that is to grow: the absolute path of its image, and its size if that is
    given."""
    path, given = split("disk=", text, keys=("size",))
    if not path:
        raise CannotRun(f"disk={text}: which disk?", hint="disk=FILE,size=20G, as FILE was given to --disk")
    if "size" in given:
        parse_size(given["size"])
    return {"path": os.path.join(os.getcwd(), path), **given}
