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
        load(name).add_arguments(commands.add_parser(name, help=text, description=text))
    sys.stdout.write(shtab.complete(parser, args.shell))
    return 0
