# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm exec`: run a command in a guest that runs, beside what it does.

examples:
  unikvm exec lab dmesg              in the guest that `unikvm run -n lab` started
  unikvm exec -- ps                  in the only one that runs
  unikvm exec lab -t -- top          on a terminal
  tar c . | unikvm exec lab --cwd /tmp -- tar x

Standard input, output and errors stay apart and are exact; Ctrl-C reaches the command, the third one leaves it. A
command whose client goes gets SIGHUP.
status: CMD's own (0-119; larger ones and signals, as 128 + N: 119); 125 where it could not be run.
"""

from __future__ import annotations

import argparse
import os
import sys

from unikvm.cli.options.values import add_environment
from unikvm.cli.remote import EXEC_KEYS, connect, run
from unikvm.errors import MAX_CMD_STATUS, CannotRun
from unikvm.remote.command import request

USAGE = "unikvm exec [NAME] [OPTION...] -- CMD... | unikvm exec [OPTION...] NAME CMD..."
BARE_COMMAND = True  # as of `docker exec` and `ssh`: without a `--` the second word begins it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the guest (default: the only one that runs)")
    parser.add_argument("-w", "--cwd", metavar="DIR", default="", help="working directory (default: the user's home)")
    add_who(parser)
    parser.add_argument("-t", "--tty", action="store_true", help="on a terminal of its own; Ctrl-A h helps")
    parser.add_argument("-i", action="store_true", help=argparse.SUPPRESS)  # of habit


def add_who(parser: argparse.ArgumentParser) -> None:
    """As whom, and with what environment."""
    text = "as NAME of the guest, UID or UID:GID (default: root)"
    parser.add_argument("-u", "--user", metavar="USER", default="", help=text)
    text = "environment; NAME alone: as here; repeatable"
    parser.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help=text)


def main(args: argparse.Namespace) -> int:
    if not args.command:
        raise CannotRun("no command", hint="unikvm exec NAME CMD, or -- CMD in the only guest; unikvm shell NAME")
    with connect(args.name) as stream:
        env = environment(args.env, terminal=args.tty)
        status = run(
            stream,
            lambda size: request(args.command, cwd=args.cwd, env=env, user=args.user, size=size),
            tty=args.tty,
            keys=EXEC_KEYS,
        )
    return shown(status)


def environment(given: list[str], *, terminal: bool) -> dict[str, str]:
    """What a command gets: the terminal's kind and the language of here, and what is given."""
    names = ("TERM", "LANG") if terminal else ("LANG",)
    found = {name: os.environ[name] for name in names if name in os.environ}
    add_environment(found, given)
    return found


def shown(status: int) -> int:
    """The exit status for a command's: one that would mean something of ours is told, and becomes the largest."""
    if status <= MAX_CMD_STATUS:
        return status
    sys.stderr.write(f"unikvm: the command ended with status {status}\n")
    return MAX_CMD_STATUS
