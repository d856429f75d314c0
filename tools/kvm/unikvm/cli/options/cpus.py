# SPDX-License-Identifier: GPL-2.0-only
"""--cpus: how many vCPUs, of what shape and model, and where they run."""

from __future__ import annotations

from unikvm.arch.x86_64.topology import Topology
from unikvm.cli.options.values import split
from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEYS = ("max", "sockets", "cores", "threads", "model", "pin")
MAX_HOST_CPU = 8191


def parse(text: str) -> dict[str, Any]:
    """The fields of Config that `N[,max=N][,sockets=N][,cores=N][,threads=N][,model=M][,pin=LIST]` says."""
    first, given = split("--cpus", text, keys=KEYS)
    count = _number(text, "", first)
    fields: dict[str, Any] = {"cpus": count}
    most = _number(text, "max=", given["max"]) if "max" in given else count
    if most < count:
        raise CannotRun(f"--cpus {text}: {count} CPUs are more than max={most}")
    shape: dict[str, int] = {
        name: _number(text, f"{name}=", given[name]) for name in ("sockets", "cores", "threads") if name in given
    }
    if shape or most > count:
        fields["topology"] = topology(text, most, shape)
    if "model" in given:
        from unikvm.arch.x86_64 import models

        models.check(given["model"])
        fields["cpu_model"] = given["model"]
    if "pin" in given:
        fields["pin"] = cpu_list(text, given["pin"])
    return fields


def topology(text: str, cpus: int, shape: dict[str, int]) -> Topology:
    """The topology of `cpus`; of what `shape` leaves open, cores take the most, then sockets, then threads."""
    whole = 1
    for size in shape.values():
        whole *= size
    left = [name for name in ("cores", "sockets", "threads") if name not in shape]
    if cpus % whole or (not left and cpus != whole):
        form = "×".join(f"{size} {name}" for name, size in shape.items())
        raise CannotRun(f"--cpus {text}: {form} do not make {cpus} CPUs", hint="sockets×cores×threads=CPUs, or max=")
    if left:
        shape = {**shape, left[0]: cpus // whole}
    return Topology(**shape)


def cpu_list(text: str, value: str) -> tuple[int, ...]:
    """CPUs of the host, `0-3` or `0-3:8:10-11`: a comma begins the next word of --cpus."""
    cpus: list[int] = []
    for part in value.split(":"):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or not (last.isdecimal() if dash else True):
            raise CannotRun(f"--cpus {text}: {part!r} names no CPUs", hint="pin=0-3 or pin=0:2")
        start, end = int(first), int(last or first)
        if not start <= end <= MAX_HOST_CPU:
            raise CannotRun(f"--cpus {text}: there is no CPU range {part!r}", hint="pin=0-3 or pin=0:2")
        cpus += range(start, end + 1)
    return tuple(cpus)


def _number(text: str, key: str, value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise CannotRun(f"--cpus {text}: {key}{value} is no number of CPUs", hint="as --cpus 4 or --cpus 4,max=8")
    return int(value)
