# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm completion`: completion scripts, made by shtab from the parsers themselves.

examples:
  source <(unikvm completion bash)
  unikvm completion zsh > ~/.zfunc/_unikvm
"""

from __future__ import annotations

import argparse
import sys

from unikvm.errors import CannotRun

# Of arguments that are guests: those that run. In the shells' own languages; shtab calls them by name.
GUESTS = {
    "bash": '_unikvm_guests() { compgen -W "$(unikvm list --names 2>/dev/null)" -- "$1"; }',
    "zsh": '_unikvm_guests() { compadd -- ${(f)"$(unikvm list --names 2>/dev/null)"} }',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to complete in")


def main(args: argparse.Namespace) -> int:
    from unikvm.cli.main import COMMANDS, load

    try:
        import shtab
    except ImportError:
        raise CannotRun("completion needs the Python package shtab", hint="pip install shtab") from None
    parser = argparse.ArgumentParser(prog="unikvm")
    commands = parser.add_subparsers(dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        load(name).add_arguments(command)
        for action in command._actions:
            if action.dest in ("name", "names") and not action.option_strings:
                action.complete = dict.fromkeys(GUESTS, "_unikvm_guests")  # type: ignore[attr-defined]
    preamble = GUESTS.get(args.shell, "")
    sys.stdout.write(shtab.complete(parser, args.shell, preamble=preamble))
    return 0
