# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm detach`: take a device out of a running guest, when the guest has let go of it.

examples:
  unikvm detach lab 00:05.0            what `unikvm attach` printed, and `unikvm stat lab` shows
  unikvm detach lab 00:05.0 --force    after 10 seconds whatever the guest says
"""

from __future__ import annotations

import argparse

from unikvm.control import client
from unikvm.errors import CannotRun

USAGE = "unikvm detach [NAME] ADDRESS [OPTION...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="ADDRESS",
        help="the guest (default: the only one that runs), and the device's address",
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=10.0, help="for the guest to let go (default: 10)"
    )
    parser.add_argument("--force", action="store_true", help="then take it all the same, as if it were pulled out")


def main(args: argparse.Namespace) -> int:
    if len(args.words) > 2:
        raise CannotRun("one device at a time", hint="unikvm detach NAME 00:05.0")
    name = args.words[0] if len(args.words) == 2 else None
    wait = args.seconds
    client.call(client.choose(name), "detach", seconds=wait + 60.0, address=args.words[-1], wait=wait, force=args.force)
    return 0
