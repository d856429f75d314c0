# SPDX-License-Identifier: GPL-2.0-only
"""Whether the host VM is alive: its QEMU, its kernel's console, its init's answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unikvm.errors import CANNOT_RUN, HANG, PANIC, UnikvmError

if TYPE_CHECKING:
    from unikvm.hostvm.launch import Qemu

_TAIL = 8192  # bytes of console that an error carries
_PANIC = b"Kernel panic - not syncing"
_PANIC_SECONDS = 3.0  # the kernel's panic=1, and the time to print
HEARTBEAT = 2.0  # seconds of silence until init is asked whether it is there
SILENCE = 30.0  # seconds without an answer that make a hang (times HostConfig.patience)

_OUTCOMES = {"host-panic": PANIC, "host-hang": HANG, "host-died": CANNOT_RUN}


class HostError(UnikvmError):
    """The host VM ended by itself: `kind` is host-panic, host-hang or host-died; `console` is the end of its console.

    `output_seen`: some output of the command it ran had been handed over, so that running it again would double it.
    """

    def __init__(self, kind: str, message: str, console: str) -> None:
        super().__init__(message, hint="the end of its console follows" if console else "", outcome=_OUTCOMES[kind])
        self.kind = kind
        self.console = console
        self.output_seen = False


class Watchdog:
    """Watches one QEMU. `check` is called often, `waited` with the time that passed while waiting for the host.

    Only time spent waiting counts: a front end that was stopped itself, or busy writing, does not accuse its host.
    """

    def __init__(self, qemu: Qemu, patience: float) -> None:
        self._qemu = qemu
        self._patience = patience
        self._silent = 0.0
        self._scanned = 0  # of the console

    def heard(self) -> None:
        """Init said something."""
        self._silent = 0.0

    def waited(self, seconds: float) -> None:
        """`seconds` passed in which init could have spoken; HostError after too many."""
        self._silent += seconds
        if self._silent > SILENCE * self._patience:
            self.hung(f"no answer for {self._silent:.0f} s")

    def hung(self, what: str) -> None:
        """Raise that the host hangs."""
        self.check()  # a panic says more
        raise HostError("host-hang", f"the host VM hangs: {what}", self.tail())

    def closed(self, what: str) -> None:
        """Raise that the other end of a socket is gone: QEMU is ending."""
        self._qemu.process.wait(_PANIC_SECONDS)
        self.check()
        raise HostError("host-died", f"the host VM closed {what}", self.tail())

    def check(self) -> None:
        """HostError when the host's kernel has panicked or its QEMU has ended."""
        if self._panicked():
            self._qemu.process.wait(_PANIC_SECONDS)
            line = self._panic_line()
            raise HostError("host-panic", f"the host VM's kernel panicked: {line}", self.tail())
        status = self._qemu.process.poll()
        if status is None:
            return
        end = f"signal {-status}" if status < 0 else f"status {status}"
        said = self._qemu.process.log_text().splitlines()
        raise HostError(
            "host-died", f"the host VM's QEMU ended with {end}{': ' + said[-1] if said else ''}", self.tail()
        )

    def tail(self, size: int = _TAIL) -> str:
        """The end of the console."""
        return self._console(max(0, self._console_size() - size)).decode("utf-8", "replace").replace("\r", "")

    def _console_size(self) -> int:
        return os.fstat(self._qemu.console).st_size

    def _console(self, start: int) -> bytes:
        return os.pread(self._qemu.console, self._console_size() - start, start)

    def _panicked(self) -> bool:
        size = self._console_size()
        if size == self._scanned:
            return False
        found = _PANIC in self._console(max(0, self._scanned - len(_PANIC)))
        if not found:
            self._scanned = size
        return found

    def _panic_line(self) -> str:
        text = self._console(0)
        at = text.find(_PANIC)
        line = text[at + len(_PANIC) :].split(b"\n", 1)[0]
        return line.decode("utf-8", "replace").strip(": \r")
