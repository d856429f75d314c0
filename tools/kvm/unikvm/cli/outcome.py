# SPDX-License-Identifier: GPL-2.0-only
"""How a run ends for its user: the last line, the result file, the exit status; and the seconds of each phase."""

from __future__ import annotations

import time

from unikvm.cli.plan import Plan
from unikvm.cli.terminal import say
from unikvm.errors import CannotRun
from unikvm.machine.events import Event


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


def finish(plan: Plan, event: Event, seconds: float, kernel_half: str) -> int:
    """Say how it ended, write the result, and give the exit status."""
    if not plan.quiet:
        say(f"unikvm: {event.name} {event.outcome}: {event.detail} ({seconds:.1f} s)")
    if plan.result:
        write_result(plan, event, seconds, kernel_half)
    return event.outcome


def write_result(plan: Plan, event: Event, seconds: float, kernel_half: str) -> None:
    """The outcome as JSON. `status` is the exit status, `true_status` what the guest gave, where it gave one."""
    import json

    from unikvm.release import release

    result = {
        "outcome": event.name,
        "status": event.outcome,
        "true_status": getattr(event, "status", None),
        "detail": event.detail,
        "seconds": round(seconds, 3),
        "kernel": plan.config.kernel,
        "command": list(plan.command),
        "user_half": plan.release or release(),
        "kernel_half": kernel_half or None,
    }
    try:
        with open(plan.result or "", "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    except OSError as error:
        raise CannotRun(f"cannot write the result to {plan.result}: {error.strerror}") from error
