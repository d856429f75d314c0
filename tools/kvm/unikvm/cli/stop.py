# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm stop`: end running guests.

examples:
  unikvm stop            the only guest that runs
  unikvm stop lab web    these
  unikvm stop --all
  unikvm stop --power lab    press its power button: a guest that listens to it shuts down in good order

Without --power a guest ends at once, as with Ctrl-A x on its terminal.
"""

from __future__ import annotations

import argparse
import time

from unikvm.control import client, names
from unikvm.errors import CannotRun

_STEP = 0.05  # seconds between two looks whether it has ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="the guests (default: the only one that runs)")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--power", action="store_true", help="press the power button instead")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="wait so long for the end (30)")


def main(args: argparse.Namespace) -> int:
    if args.all and args.names:
        raise CannotRun("--all, or names")
    asked = names.running() if args.all else args.names or [client.choose(None)]
    for name in asked:
        client.call(name, "stop", power=args.power)
    deadline = time.monotonic() + args.timeout
    while left := [name for name in asked if name in names.running()]:
        if time.monotonic() > deadline:
            hint = "it may not listen to its power button: `unikvm stop` without --power" if args.power else ""
            raise CannotRun(f"{', '.join(left)} did not end within {args.timeout:g} s", hint=hint)
        time.sleep(_STEP)
    return 0
