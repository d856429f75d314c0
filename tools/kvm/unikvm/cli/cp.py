# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm cp`: files and directories into a guest that runs, and out of it.

examples:
  unikvm cp vmlinux a.sh lab:/tmp    into the guest that `unikvm run -n lab` started
  unikvm cp lab:/var/log/. logs      what is in a directory, to another one
  unikvm cp :/etc/fstab .            of the only guest that runs
  unikvm cp disk.img lab:/dev/vda

Directories are copied with all that is in them. Modes, times, symbolic links and holes are kept; files belong to root
in the guest, and to you here. A path in the guest that does not begin with / is one in root's home.
status: 0; 1 where something was left out; 125 where it could not be done.
"""

from __future__ import annotations

import argparse
import sys
import time

from unikvm.cli.remote import connect
from unikvm.cli.terminal import StatusLine
from unikvm.errors import CannotRun
from unikvm.remote.pull import pull
from unikvm.remote.push import push
from unikvm.units import MIB

USAGE = "unikvm cp SRC... NAME:DST | unikvm cp NAME:SRC... DST"
SHOWN_AFTER = 1.0  # seconds
SHOWN_EVERY = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="sources, and the destination at the end")
    parser.add_argument("-r", "-a", action="store_true", dest="recursive", help=argparse.SUPPRESS)  # of habit
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def guest_of(path: str) -> tuple[str | None, str]:
    """(guest, path there); None for the guest where it is a path of this machine: as scp, `./a:b` is one."""
    name, colon, rest = path.partition(":")
    return (name, rest) if colon and "/" not in name else (None, path)


def main(args: argparse.Namespace) -> int:
    *sources, target = args.paths
    if not sources:
        raise CannotRun("a source and a destination", hint=USAGE)
    guest, place = guest_of(target)
    places = [guest_of(source) for source in sources]
    from_guests = {name for name, _ in places if name is not None}
    if (guest is None) == (not from_guests) or (from_guests and any(name is None for name, _ in places)):
        raise CannotRun("one side of a copy is in a guest, the other one here", hint=USAGE)
    progress = Progress(quiet=args.quiet)
    whole = True
    try:
        for name, source in places:
            with connect(name or guest or None) as stream:
                into = len(places) > 1
                copy = push if guest is not None else pull
                where = place or "."
                whole &= copy(stream, source or ".", where, into=into, warn=progress.warn, progress=progress.moved)
    finally:
        progress.clear()
    return 0 if whole else 1


class Progress:
    """How much of a long copy is done, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._line = StatusLine(wanted=not quiet)
        self._began = self._last = time.monotonic()
        self._done = self._of_file = self._size = 0

    def moved(self, count: int, size: int) -> None:
        """`count` bytes more; a `size` says that a file of so many begins."""
        if size >= 0 and not count:
            self._of_file, self._size = 0, size
        self._done += count
        self._of_file += count
        now = time.monotonic()
        if now - self._began > SHOWN_AFTER and now - self._last > SHOWN_EVERY:
            self._last = now
            share = f", {min(100, 100 * self._of_file // self._size)} % of this file" if self._size else ""
            speed = self._done / (now - self._began) / MIB
            self._line.show(f"{self._done / MIB:.1f} MiB, {speed:.1f} MiB/s{share}")

    def warn(self, line: str) -> None:
        self.clear()
        sys.stderr.write(f"unikvm: {line}\n")

    def clear(self) -> None:
        self._line.clear()
