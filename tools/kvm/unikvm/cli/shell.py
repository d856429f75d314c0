# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm shell`: a login shell in a guest that runs, as many as you like.

examples:
  unikvm shell           in the only guest that runs
  unikvm shell lab       in the one that `unikvm run -n lab` started
  unikvm shell lab --user daemon
  unikvm shell lab <script     without a terminal, as of ssh

keys: Ctrl-A x leaves, Ctrl-A h helps. status: the shell's.
"""

from __future__ import annotations

import argparse
import os

from unikvm.cli.exec import add_who, environment, shown
from unikvm.cli.remote import EXEC_KEYS, connect, run
from unikvm.remote.command import request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the guest (default: the only one that runs)")
    add_who(parser)


def main(args: argparse.Namespace) -> int:
    # A terminal in the guest has no end of input of its own: it would be a key, which a shell that starts may not see.
    tty = os.isatty(0)
    with connect(args.name) as stream:
        env = environment(args.env, terminal=tty)
        status = run(
            stream,
            lambda size: request([], login=True, env=env, user=args.user, size=size),
            tty=tty,
            keys=EXEC_KEYS,
        )
    return shown(status)
