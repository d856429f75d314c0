# SPDX-License-Identifier: GPL-2.0-only
"""--net and --forward: what a plan becomes by them."""

from __future__ import annotations

import pytest

from unikvm.cli import network
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
    assert "unikvm.net=dhcp" in command_line(added("--net", "user"), True).split()
    assert "unikvm.net" not in command_line(added("--net", "user"), False)
    assert "unikvm.net" not in command_line(PLAN, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--net", "bridge"), "no such network"),
        (("--net", "user", "--forward", "x"), "no two ports"),
        (("--forward", "1:2"), "is for --net user"),
    ],
)
def test_refusals(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(CannotRun, match=why):
        added(*words)
