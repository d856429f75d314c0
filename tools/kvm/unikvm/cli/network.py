# SPDX-License-Identifier: GPL-2.0-only
"""The guest's network interface (--net, --forward). Imported for runs that ask for one."""

from __future__ import annotations

from unikvm.cli.plan import Plan
from unikvm.errors import CannotRun
from unikvm.machine.config import Net
from unikvm.vhost.passt import parse_forward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GUEST_MODULES = ("virtio_net",)  # beside those of every guest
OPTIONAL_MODULES = ("af_packet",)  # for DHCP; built in in most kernels


def add(plan: Plan, args: Any) -> Plan:
    """`plan` with the interface that `args` ask for. CannotRun where that cannot be."""
    return plan.replace(config=plan.config.replace(net=parse(args.net, tuple(args.forward))))


def parse(text: str, forwards: tuple[str, ...]) -> Net:
    """The interface that --net and --forward describe."""
    if forwards and text != "user":
        raise CannotRun("--forward is for --net user", hint="give both, or reach the guest by its own address")
    for forward in forwards:
        parse_forward(forward)
    if text == "user":
        return Net(text, forwards)
    raise CannotRun(f"--net {text}: no such network", hint="user or none")
