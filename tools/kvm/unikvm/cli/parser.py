# SPDX-License-Identifier: GPL-2.0-only
"""The argparse parsers of the commands: help that fits a screen, errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from unikvm.cli import elsewhere
from unikvm.cli.main import COMMANDS, load, takes_command
from unikvm.errors import CANNOT_RUN


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and status 125: a wrong command line is a run that could not start."""

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        known = self._option_string_actions
        for word in args:
            if elsewhere.one_dash(word, known):
                self.error(self._not_understood(word))
        found, left = self.parse_known_args(args)
        if left:
            self.error(self._not_understood(left[0]))
        return found

    def _not_understood(self, word: str) -> str:
        """What is wrong with `word`, and what may have been meant."""
        if word.startswith("-"):
            word = word.partition("=")[0]
            meant = elsewhere.option(word, [name for name in self._option_string_actions if name.startswith("--")])
            if meant:
                return f"no option {word}: use {meant}"
            what = f"no option {word}"
        else:
            what = f"{word!r} is one word too many"
        likely = takes_command(self.usage) and not word.startswith("--")
        return what + (": a command comes after `--`" if likely else "")

    def split(self, argv: list[str]) -> tuple[list[str], list[str]]:
        """Options around the first word that is none, and the command that the second one begins."""
        at = words = 0
        while at < len(argv):
            word = argv[at]
            if not word.startswith("-"):
                words += 1
                if words > 1:
                    break
            action = self._option_string_actions.get(word)
            at += 2 if action is not None and action.nargs is None else 1
        return argv[:at], argv[at:]

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


def command_parser(name: str) -> Parser:
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
