# SPDX-License-Identifier: GPL-2.0-only
"""What whoever asks for the agent of a guest without one is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from unikvm.cli.agent import AgentAccess
from unikvm.control.server import Server
from unikvm.errors import UnikvmError


class Commands:
    def __init__(self) -> None:
        self.known: dict[str, Callable[[dict[str, object]], object]] = {}

    def command(self, name: str, function: Callable[[dict[str, object]], object]) -> None:
        self.known[name] = function


@pytest.mark.parametrize(
    ("linux", "why"), [(True, "its initramfs is not unikvm's"), (False, "not with firmware or a payload")]
)
def test_a_guest_without_an_agent(linux: bool, why: str) -> None:
    commands = Commands()
    access = AgentAccess(linux=linux, own_init=False)
    access.serve(cast("Server", commands), "lab")
    assert access.devices == ()
    with pytest.raises(UnikvmError, match=f"guest lab has no agent: .*{why}"):
        commands.known["agent"]({})
