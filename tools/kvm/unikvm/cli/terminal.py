# SPDX-License-Identifier: GPL-2.0-only
"""The developer's terminal: raw mode that is always undone, the Ctrl-A escape, and window-size changes."""

from __future__ import annotations

import atexit
import errno
import os
import select
import sys
import termios

from unikvm.lean import SIGHUP, SIGTERM, SIGWINCH, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ESCAPE = 0x01  # Ctrl-A, as QEMU's
PATIENCE_MS = 100  # from the end of a run to that of a thread that waits for a slow reader
SURE_BYTES = 512  # _POSIX_PIPE_BUF: what is written at once where there is room at all
CLEAR_LINE = b"\r\x1b[K"
HELP = b"\r\nCtrl-A h  this help\r\nCtrl-A x  leave: end the guest\r\nCtrl-A a  send Ctrl-A\r\n"


class raw_mode:
    """Put the terminal `fd` (-1: none) into raw mode; restore it at the end, however that comes."""

    active = False  # some terminal is in it

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._saved: list[Any] = []

    def __enter__(self) -> None:
        if self._fd < 0 or not os.isatty(self._fd):
            return
        self._saved = termios.tcgetattr(self._fd)
        raw = termios.tcgetattr(self._fd)
        raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        raw[1] &= ~termios.OPOST  # the guest's terminal has made its line ends already
        raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        atexit.register(self._restore)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, raw)
        raw_mode.active = True

    def __exit__(self, *_error: object) -> None:
        self._restore()
        atexit.unregister(self._restore)

    def _restore(self) -> None:
        if self._saved:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = []
            raw_mode.active = False


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the process as Ctrl-C does, through every `finally`."""

    def leave(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (SIGTERM, SIGHUP):
        signal(number, leave)


class Output:
    """A descriptor that what a guest prints goes to, from a vCPU's thread. A reader who does not read holds the guest
    up, but not its end: `ended` says when to give up. What is for a reader who is gone is lost.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended: Callable[[], bool] = lambda: False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and self.fd >= 0:
            # A signal would not get the thread out of write(), which Python then calls again.
            if self._poll.poll(PATIENCE_MS):
                try:
                    left = left[os.write(self.fd, left[:SURE_BYTES]) :]
                except OSError as error:
                    self.fd = -1
                    lost(error)
            elif self.ended():
                return


def lost(error: OSError) -> None:
    """What the guest prints can go nowhere any more: a full disk is worth a line, a reader who has gone is not."""
    if error.errno != errno.EPIPE:
        say(f"unikvm: the rest of the output is lost: {error.strerror}")


class EscapeFilter:
    """Takes the Ctrl-A commands out of what is typed. `leave` is called for Ctrl-A x, `show` writes help."""

    def __init__(self, leave: Callable[[], None], show: Callable[[bytes], object], text: bytes = HELP) -> None:
        self._leave = leave
        self._text = text
        self._show = show
        self._escaped = False

    def feed(self, typed: bytes) -> bytes:
        """The bytes of `typed` that are for the guest."""
        if not self._escaped and ESCAPE not in typed:
            return typed
        out = bytearray()
        for byte in typed:
            if self._escaped:
                self._escaped = False
                self._command(byte, out)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                out.append(byte)
        return bytes(out)

    def _command(self, byte: int, out: bytearray) -> None:
        if byte in b"xX":
            self._leave()
        elif byte in b"hH?":
            self._show(self._text)
        elif byte in (ESCAPE, *b"aA"):
            out.append(ESCAPE)
        else:
            out += bytes((ESCAPE, byte))


def window_size(fd: int = 1) -> tuple[int, int]:
    """(columns, rows) of the terminal, (80, 24) where there is none."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 80, 24
    return size.columns, size.lines


def on_resize(callback: Callable[[int, int], None]) -> None:
    """Call `callback(columns, rows)` whenever the terminal's window changes its size."""
    signal(SIGWINCH, lambda _number, _frame: callback(*window_size()))


class StatusLine:
    """A line on stderr of what goes on, which vanishes. `shows`: there is a terminal for it, and it is `wanted`."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.shows = wanted and os.isatty(2) and os.environ.get("TERM") != "dumb"
        self._shown = False

    def show(self, text: str) -> None:
        if self.shows:
            width = (window_size(2)[0] or 80) - 1  # one that goes round the edge would stay
            os.write(2, CLEAR_LINE + f"unikvm: {text}"[:width].encode())
            self._shown = True

    def clear(self) -> None:
        """Before anything else is printed."""
        if self._shown:
            os.write(2, CLEAR_LINE)
            self._shown = False


def say(line: str) -> None:
    """One line on stderr; on a raw terminal it needs its own carriage return."""
    end = "\r\n" if raw_mode.active else "\n"
    try:
        sys.stderr.write(line + end)
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads on, which changes no outcome
