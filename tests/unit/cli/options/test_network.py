# SPDX-License-Identifier: GPL-2.0-only
"""--net and --forward: what a plan becomes by them."""

from __future__ import annotations

import pytest

from unikvm.cli.options import network
from unikvm.cli.plan import Plan, command_line, load
from unikvm.cli.run import quick_parse
from unikvm.errors import CannotRun
from unikvm.machine.config import Config, Net

PLAN = Plan(Config(kernel="vmlinux"), linux=True, command=("true",))


def added(*words: str) -> Plan:
    options = quick_parse(list(words))
    assert options is not None
    return network.add(PLAN, options)


def test_user() -> None:
    plan = added("--net", "user", "--forward", "8080:80", "--forward", "53:53/udp")
    assert plan.config.net == Net("user", ("8080:80", "53:53/udp"))
    assert load(plan.dump()) == plan
    assert load(PLAN.dump()).config.net is None


def test_the_guests_init_is_told() -> None:
    assert "unikvm.net=dhcp,alone" in command_line(added("--net", "user"), True).split()
    assert "unikvm.net" not in command_line(added("--net", "user"), False)
    assert "unikvm.net" not in command_line(PLAN, True)


def test_tap() -> None:
    plan = added("--net", "tap=tap7,ip=192.168.7.2/16,gw=192.168.7.1")
    assert plan.config.net == Net("tap", name="tap7", address="192.168.7.2/16", router="192.168.7.1")
    assert load(plan.dump()) == plan
    assert "unikvm.net=192.168.7.2/16,192.168.7.1" in command_line(plan, True).split()
    assert added("--net", "tap").config.net == Net("tap")
    assert added("--net", "tap,ip=10.0.0.1").config.net == Net("tap", address="10.0.0.1/24")
    assert added("--net", "tap=tap7,queues=4").config.net == Net("tap", name="tap7", queues=4)
    assert "unikvm.net=dhcp" in command_line(added("--net", "tap=br7"), True).split()


def test_hub() -> None:
    plan = added("--net", "hub=lab-1,ip=10.1.0.1/16")
    assert plan.config.net == Net("hub", name="lab-1", address="10.1.0.1/16")
    assert "unikvm.net=10.1.0.1/16" in command_line(plan, True).split()
    assert "unikvm.net" not in command_line(added("--net", "hub=lab"), True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--net", "bridge"), "no such network"),
        (("--net", "user,ip=1.2.3.4"), "no such network"),
        (("--net", "tap,ip=1.2.3"), "no address"),
        (("--net", "hub"), "no name of a network"),
        (("--net", "hub=../x"), "no name of a network"),
        (("--net", "tap,ip=1.2.3.4/33"), "no address"),
        (("--net", "tap,gw=1.2.3.4"), "a router without"),
        (("--net", "tap,mac=0"), "not understood"),
        (("--net", "tap,queues=x"), "a tap has queues=N"),
        (("--net", "tap,queues=0"), "0 queues are not possible"),
        (("--net", "tap,queues=9"), "9 queues are not possible"),
        (("--net", "hub=lab,queues=2"), "a tap has queues=N"),
        (("--net", "tap", "--forward", "1:2"), "is for --net user"),
        (("--net", "user", "--forward", "x"), "no two ports"),
        (("--forward", "1:2"), "is for --net user"),
    ],
)
def test_refusals(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(CannotRun, match=why):
        added(*words)
