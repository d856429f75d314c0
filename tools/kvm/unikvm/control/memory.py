# SPDX-License-Identifier: GPL-2.0-only
"""What `unikvm stat` says of memory that comes and goes; the guest is asked at that moment."""

from __future__ import annotations

from unikvm.control.server import Later
from unikvm.errors import UnikvmError
from unikvm.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.machine.machine import Machine
    from unikvm.machine.ram import Ram

ANSWER_SECONDS = 2.0
_COUNTS = ("major-faults", "minor-faults", "huge-pages-allocated", "huge-pages-failed")


def stat(machine: Machine, ram: Ram, facts: dict[str, object]) -> object:
    """`facts`, and what there is of memory; later, where the guest is asked."""
    memory: dict[str, object] = {"asked for": format_size(ram.wanted), "there": format_size(ram.actual)}
    if ram.balloon is not None:
        memory["in the balloon"] = format_size(ram.balloon.actual)
        memory["reported free so far"] = f"{ram.balloon.reported >> 20}M"
    if ram.mem is not None:
        memory["plugged in"] = format_size(ram.mem.plugged)
        memory["most"] = format_size(ram.most)
    everything = {**facts, "memory now": memory}
    if ram.balloon is None:
        return everything

    def start(reply: Callable[[object], None], _fail: Callable[[UnikvmError], None]) -> None:
        def answered(statistics: dict[str, int]) -> None:
            if timer.pending:
                timer.cancel()
                memory["in the guest"] = _readable(statistics)
                reply(everything)

        def late() -> None:
            memory["in the guest"] = f"no answer for {ANSWER_SECONDS:g} s"
            reply(everything)

        timer = machine.parts.io.loop.call_later(ANSWER_SECONDS, late)
        try:
            ram.statistics(answered)
        except UnikvmError as error:
            timer.cancel()
            memory["in the guest"] = error.message
            reply(everything)

    return Later(start)


def _readable(statistics: dict[str, int]) -> dict[str, object]:
    return {name: value if name in _COUNTS else f"{value >> 20}M" for name, value in statistics.items()}
