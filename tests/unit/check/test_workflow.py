# SPDX-License-Identifier: GPL-2.0-only
"""The command lines in the workflow of the CI service are ones that unikvm takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from unikvm.cli.main import split_command
from unikvm.cli.parser import command_parser

WORKFLOW = Path(__file__).resolve().parents[3] / ".github/workflows/check.yml"


def test_its_commands_are_understood() -> None:
    folded = re.findall(r"run: >\n((?: {10}.*\n)+)", WORKFLOW.read_text(encoding="utf-8"))
    commands = [shlex.split(text) for text in folded]
    assert [words[:2] for words in commands] == [["scripts/unikvm", "check"], ["scripts/unikvm", "bisect"]]
    for _, name, *words in commands:
        options, _ = split_command(words)
        assert command_parser(name).parse_args(options)
