# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm list`: the guests that run, and can be reached by their names.

examples:
  unikvm list            a line for each
  unikvm list --json     the same for programs

A guest is reachable when it was given a name (`unikvm run -n NAME`) or has a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from unikvm.control import client, names
from unikvm.errors import UnikvmError

_COLUMNS = (("NAME", "name"), ("PID", "pid"), ("UP", "up"), ("CPUS", "cpus"), ("MEM", "memory"), ("KERNEL", "kernel"))
_SECONDS = 10.0  # one that is stuck must not hide the others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", action="store_true", help="the names alone; no guest is asked")
    parser.add_argument("--json", action="store_true", help="an object for each guest, as `unikvm stat --json` has it")


def main(args: argparse.Namespace) -> int:
    if args.names:
        sys.stdout.write("".join(f"{name}\n" for name in names.running()))
        return 0
    found = [_stat(name) for name in names.running()]
    if args.json:
        json.dump(found, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif found:
        sys.stdout.write(_table(found))
    else:
        sys.stderr.write("unikvm: no guest runs that could be reached (`unikvm run -n NAME` starts one)\n")
    return 0


def _stat(name: str) -> dict[str, Any]:
    try:
        stat = client.call(name, "stat", seconds=_SECONDS)
    except UnikvmError as error:
        return {"name": name, "kernel": f"({error.message})"}
    assert isinstance(stat, dict)
    return {**stat, "name": name, "up": duration(stat["seconds"])}


def duration(seconds: float) -> str:
    """As people say it: 42s, 3m10s, 2h05m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _table(found: list[dict[str, Any]]) -> str:
    rows = [[title for title, _ in _COLUMNS], *([str(guest.get(key, "")) for _, key in _COLUMNS] for guest in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
