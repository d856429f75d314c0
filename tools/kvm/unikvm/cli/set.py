# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm set`: change a running guest.

examples:
  unikvm set lab cpus=4 mem=1G    of the guest that `unikvm run -n lab` started
  unikvm set mem=512M             of the only guest that runs
  unikvm set lab disk=data.img,size=20G     make a disk larger, and its image (raw, qcow2)
  unikvm set lab disk=/dev/vg/data          its image has grown: the guest is told

What can be changed depends on how the guest was started.
"""

from __future__ import annotations

import argparse

from unikvm.control import client
from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USAGE = "unikvm set [NAME] KEY=VALUE..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="KEY=VALUE",
        help="the guest (default: the only one that runs), and what to set: cpus=N, mem=SIZE, disk=FILE[,size=SIZE]",
    )


def main(args: argparse.Namespace) -> int:
    first, *rest = args.words
    name, pairs = (None, args.words) if "=" in first else (first, rest)
    values: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if not values or len(values) != len(pairs):
        raise CannotRun("what is to be set?", hint="KEY=VALUE, each key once")
    if "disk" in values:
        from unikvm.cli.options.disks import parse_growth

        values["disk"] = parse_growth(values["disk"])
    client.call(client.choose(name), "set", **values)
    return 0
