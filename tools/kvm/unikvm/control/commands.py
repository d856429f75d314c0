# SPDX-License-Identifier: GPL-2.0-only
"""What a running machine can be asked for, by any process of its user's (Documentation/control.md)."""

from __future__ import annotations

import os
import time

from unikvm.control.plugging import PluggingCommands
from unikvm.control.server import Later
from unikvm.errors import UnikvmError
from unikvm.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unikvm.control.server import Reply, Server
    from unikvm.machine.machine import Machine


_LAST_REPLY = 0.02  # seconds for the answer to leave, which may have a host VM to cross


class MachineCommands:
    """`stat`, `stop` and `set` of one machine. All of it on the io thread."""

    def __init__(
        self,
        server: Server,
        machine: Machine,
        facts: dict[str, object],
        writable: Callable[[str], bool] = lambda _path: True,
        *,
        began: float,
    ) -> None:
        """`facts`: what whoever started the machine knows of it, for `stat`. `writable`: PluggingCommands says.
        `began`: when the machine started, by time.monotonic()."""
        self._machine = machine
        self._facts = facts
        self._began = began
        plugging = PluggingCommands(machine, writable)
        # What `unikvm set NAME KEY=VALUE` can change: each gets the value as the user wrote it (`disk` its parts), and
        # may take its time.
        self._settings: dict[str, Callable[[Any], object]] = {"cpus": plugging.cpus, "disk": plugging.disk}
        server.command("attach", plugging.attach)
        server.command("detach", plugging.detach)
        if machine.parts.ram is not None:
            self._settings["mem"] = machine.resize
        server.command("stat", self.stat)
        server.command("stop", self.stop)
        server.command("set", self.set)

    def stat(self, _arguments: dict[str, Any]) -> object:
        """What runs, and for how long (seconds)."""
        config, vcpus = self._machine.config, self._machine.cpus()
        facts = {
            **self._facts,
            "host": os.uname().release,
            "seconds": round(time.monotonic() - self._began, 1),
            "memory": format_size(config.memory),
            "cpus": sum(vcpu["state"] == "on" for vcpu in vcpus),
            "vcpus": vcpus,
            "devices": self._machine.devices(),
            "kernel half": self._machine.kernel_half,
        }
        ram = self._machine.parts.ram
        if ram is None:
            return facts
        from unikvm.control import memory

        return memory.stat(self._machine, ram, facts)

    def stop(self, arguments: dict[str, Any]) -> dict[str, object]:
        """End the guest at once, as Ctrl-A x does; with `power`, press its power button instead."""
        if arguments.get("power"):
            power = self._machine.parts.power
            if power is None:
                raise UnikvmError("this machine has no power button")
            power.press_power_button()
        else:
            loop = self._machine.parts.io.loop
            loop.call_later(_LAST_REPLY, self._machine.stop)
        return {}

    def set(self, arguments: dict[str, Any]) -> object:
        """Change settings of the running machine, in their order."""
        for key in arguments:
            if key not in self._settings:
                raise UnikvmError(f"no setting {key!r}", hint=f"one of {', '.join(sorted(self._settings))}")
        return self._set(list(arguments.items()))

    def _set(self, pairs: list[tuple[str, Any]]) -> object:
        while pairs:
            key, value = pairs.pop(0)
            result = self._settings[key](value if key == "disk" else str(value))
            if isinstance(result, Later):
                return self._set_after(result, pairs)
        return {}

    def _set_after(self, first: Later, pairs: list[tuple[str, Any]]) -> Later:
        """What goes on with `pairs` when `first` has come to an end."""

        def start(reply: Reply, fail: Callable[[UnikvmError], None]) -> None:
            def go_on(_value: object) -> None:
                try:
                    rest = self._set(pairs)
                except UnikvmError as error:
                    fail(error)
                    return
                if isinstance(rest, Later):
                    rest.start(reply, fail)
                else:
                    reply(rest)

            first.start(go_on, fail)

        return Later(start)
