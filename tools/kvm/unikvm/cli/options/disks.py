# SPDX-License-Identifier: GPL-2.0-only
"""--disk: a disk of the guest, as its user writes it."""

from __future__ import annotations

from unikvm.cli.options.values import split
from unikvm.errors import CannotRun
from unikvm.machine.config import Disk, format_of

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
