# SPDX-License-Identifier: GPL-2.0-only
"""How a run ends for its user: the last line, the result file, the exit status."""

from __future__ import annotations

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
    try:
        with open(plan.result or "", "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    except OSError as error:
        raise CannotRun(f"cannot write the result to {plan.result}: {error.strerror}") from error
