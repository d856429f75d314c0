# SPDX-License-Identifier: GPL-2.0-only
"""The guest's network interface (--net, --forward). Imported for runs that ask for one."""

from __future__ import annotations

from unikvm.cli.options.values import split
from unikvm.cli.plan import Plan
from unikvm.errors import CannotRun
from unikvm.machine.config import Net
from unikvm.vhost.forward import parse_forward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GUEST_MODULES = ("virtio_net",)  # beside those of every guest
HOST_MODULES = ("tun", "vhost_net")  # of a host VM, for a tap
FORM = "tap[=NAME][,queues=N] or hub=NAME, then ,ip=ADDRESS[/BITS],gw=ADDRESS"
OPTIONAL_MODULES = ("af_packet",)  # for DHCP; built in in most kernels


def add(plan: Plan, args: Any) -> Plan:
    """`plan` with the interface that `args` ask for. CannotRun where that cannot be."""
    return plan.replace(config=plan.config.replace(net=parse(args.net, tuple(args.forward))))


def parse(text: str, forwards: tuple[str, ...]) -> Net:
    """The interface that --net and --forward describe."""
    first, given = split("--net", text, keys=("ip", "gw", "queues"))
    kind, _, name = first.partition("=")
    if kind in ("tap", "hub"):
        net = _shared(text, kind, name, given)
    elif first == "user" and not given:
        net = Net(first, forwards)
    elif text == "none" and forwards:
        net = Net(text)
    else:
        raise CannotRun(f"--net {text}: no such network", hint="user, tap[=NAME], hub=NAME or none")
    if forwards and net.kind != "user":
        raise CannotRun("--forward is for --net user", hint="give both, or reach the guest by its own address")
    for forward in forwards:
        parse_forward(forward)
    return net


def _shared(text: str, kind: str, name: str, given: dict[str, str]) -> Net:
    """A network with others on it: `{tap[=NAME][,queues=N]|hub=NAME}[,ip=ADDRESS[/BITS][,gw=ADDRESS]]`."""
    queues = given.get("queues", "1")
    if not queues.isdecimal() or (kind == "hub" and "queues" in given):
        raise CannotRun(f"--net {text}: a tap has queues=N", hint=FORM)
    if kind == "hub":
        from unikvm.virtio.hub import check_name

        check_name(name)
    host, slash, bits = given.get("ip", "").partition("/")
    router = given.get("gw", "")
    if router and not host:
        raise CannotRun(f"--net {text}: a router without an address", hint=FORM)
    bits = bits if slash else "24"
    for address in filter(None, (host, router)):
        if not (_is_address(address) and bits.isdecimal() and 1 <= int(bits) <= 32):
            raise CannotRun(f"--net {text}: {address!r} is no address", hint="ip=192.168.7.2/24")
    address = f"{host}/{int(bits)}" if host else ""
    return Net(kind, name=name, address=address, router=router, queues=int(queues))


def _is_address(text: str) -> bool:
    numbers = text.split(".")
    return len(numbers) == 4 and all(number.isdecimal() and int(number) < 256 for number in numbers)


def guest_words(net: Net) -> list[str]:
    """What the guest's init is told of its interface, on the kernel's command line."""
    how = setting(net)
    return [f"unikvm.net={how}"] if how else []


def setting(net: Net) -> str:
    """How the guest sets its interface up; empty where that is its own affair."""
    if not net.address:
        return {"user": "dhcp,alone", "hub": ""}.get(net.kind, "dhcp")
    return f"{net.address}{f',{net.router}' if net.router else ''}"
