# SPDX-License-Identifier: GPL-2.0-only
"""The seconds of each phase of a run."""

from __future__ import annotations

import time

from unikvm.cli.terminal import say


class Phases:
    """Seconds of each phase; with `verbose` a line as each ends."""

    def __init__(self, verbose: int) -> None:
        self._verbose = verbose
        self._name = ""
        self._began = 0.0
        self._seconds: dict[str, float] = {}

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._began = name, time.monotonic()

    def end(self) -> None:
        if self._name:
            self._seconds[self._name] = time.monotonic() - self._began
            if self._verbose:
                say(f"unikvm: {self._name}: {self._seconds[self._name]:.2f} s")
            self._name = ""

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)
