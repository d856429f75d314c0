# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm stat`: what a running guest is, and how it is.

examples:
  unikvm stat            the only guest that runs
  unikvm stat lab        the guest that `unikvm run -n lab` started
  unikvm stat lab --exits    its exits so far, as the kernel half counts them
"""

from __future__ import annotations

import argparse
import json
import sys

from unikvm.control import client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the guest (default: the only one that runs)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--exits", action="store_true", help="the kernel half's account of its exits")


def main(args: argparse.Namespace) -> int:
    name = client.choose(args.name)
    if args.exits:
        sys.stdout.write(str(client.call(name, "exits")))
        return 0
    stat = client.call(name, "stat")
    assert isinstance(stat, dict)
    if args.json:
        json.dump(stat, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    sys.stdout.write("".join(_lines(stat, "")))
    return 0


def _lines(values: dict[str, object], indent: str) -> list[str]:
    """A line for each value; what is made of several is indented below its name."""
    lines = []
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:\n", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}{key}:\n", *(f"{indent}  {_row(row)}\n" for row in value)]
        elif value not in ("", None):
            lines.append(f"{indent}{key:<{width}}  {value}\n")
    return lines


def _row(row: object) -> str:
    return "  ".join(str(value) for value in row.values()) if isinstance(row, dict) else str(row)
