# SPDX-License-Identifier: GPL-2.0-only
"""What `exec`, `shell` and `cp` share: the way to a guest's agent, and a command on this terminal."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from threading import Timer

from unikvm.cli.terminal import EscapeFilter, on_resize, raw_mode, window_size
from unikvm.control import client
from unikvm.remote.command import RemoteCommand
from unikvm.remote.frames import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 150.0  # for an agent whose guest boots: longer than the guest's monitor waits
SAID_AFTER = 3.0  # seconds
EXEC_KEYS = b"\r\nCtrl-A h  this help\r\nCtrl-A x  leave: the command gets SIGHUP\r\nCtrl-A a  send Ctrl-A\r\n"
FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
LAST = 3  # signals of the user's: the third one means us


def connect(name: str | None) -> Stream:
    """A session with the agent of the guest `name`, or of the only one that runs. UnikvmError."""
    chosen = client.choose(name)
    told = Timer(SAID_AFTER, lambda: sys.stderr.write(f"unikvm: waiting for {chosen} to boot\n"))
    told.daemon = True
    if os.isatty(2):
        told.start()
    try:
        return Stream(client.stream(chosen, "agent", seconds=PATIENCE))
    finally:
        told.cancel()


def run(stream: Stream, words: Callable[[tuple[int, int] | None], list[str]], *, tty: bool, keys: bytes) -> int:
    """Run what `words(size of the terminal, if any)` ask for, on this process's descriptors; its status as a shell
    gives it."""
    raw = tty and os.isatty(0)

    def leave() -> None:
        raise KeyboardInterrupt

    escape = EscapeFilter(leave, lambda text: os.write(1, text), keys)
    size = window_size(1 if os.isatty(1) else 0) if tty else None
    command = RemoteCommand(stream, words(size), typed=escape.feed if raw else None)
    signals = 0

    def pass_on(number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if raw or signals >= LAST:  # on a terminal keys are bytes: a signal comes from elsewhere, and is for us
            raise KeyboardInterrupt
        command.signal(number)

    for number in FORWARDED:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGHUP, lambda _number, _frame: leave())
    if tty:
        on_resize(command.resize)
    try:
        with raw_mode(0) if raw else nullcontext():
            return command.run()
    except KeyboardInterrupt:
        sys.stderr.write("unikvm: left the command\n")
        return 128 + signal.SIGHUP
