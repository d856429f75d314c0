# SPDX-License-Identifier: GPL-2.0-only
"""The argparse parsers of the commands: help that fits a screen, errors in one line."""

from __future__ import annotations

import argparse
import sys

from unikvm.cli.main import COMMANDS, load
from unikvm.errors import CANNOT_RUN


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and status 125: a wrong command line is a run that could not start."""

    def error(self, message: str) -> object:  # type: ignore[override]
        sys.stderr.write(f"unikvm: {message} (see `{self.prog} --help`)\n")
        raise SystemExit(CANNOT_RUN)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line an option: `-k, --kernel KERNEL`, and room for what it does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=112)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    module = load(name)
    parser = Parser(
        prog=f"unikvm {name}",
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        epilog=(module.__doc__ or "").partition("\n\n")[2],
        usage=getattr(module, "USAGE", None),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser
