# SPDX-License-Identifier: GPL-2.0-only
"""How a run ends for its user: the last line, the result file, the exit status."""

from __future__ import annotations

import os

from unikvm.cli.plan import Plan
from unikvm.cli.terminal import say
from unikvm.errors import CannotRun
from unikvm.machine.events import Event


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
    save_result(plan.result or "", f"{json.dumps(result, indent=2)}\n".encode())


def save_result(path: str, result: bytes) -> None:
    """Write the result file; CannotRun where that fails, and no half of it is left."""
    try:
        with open(path, "wb") as file:
            file.write(result)
    except OSError as error:
        if os.path.isfile(path):
            os.truncate(path, 0)
        raise CannotRun(f"cannot write the result to {path}: {error.strerror}") from error
