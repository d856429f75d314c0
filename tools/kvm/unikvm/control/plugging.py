# SPDX-License-Identifier: GPL-2.0-only
"""Devices and vCPUs of a running machine, for processes of its user's: `attach`, `detach`, `set cpus=`, `set disk=`.

They wait for the host, back ends and the guest, each on a thread of its own: the io thread serves the guest meanwhile.
"""

from __future__ import annotations

import os

from unikvm.control.server import Later
from unikvm.errors import CannotRun, UnikvmError
from unikvm.machine.config import Disk, Net
from unikvm.sys.thread import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unikvm.machine.machine import Machine

MAX_SECONDS = 600.0


class PluggingCommands:
    """`attach` and `detach` of one machine, its number of CPUs and its disks' sizes. All of it on the io thread."""

    def __init__(self, machine: Machine, writable: Callable[[str], bool] = lambda _path: True) -> None:
        """`writable`: whether what is written to a path stays; in a host VM most is forgotten."""
        self._machine = machine
        self._writable = writable

    def attach(self, arguments: dict[str, Any]) -> Later:
        """Plug in a `disk` or a `net`, an object with the fields of Disk or Net; the answer is its address."""
        device = self._device(arguments)
        return self._later(lambda: self._machine.attach(device))

    def detach(self, arguments: dict[str, Any]) -> Later:
        """Take the device at `address` out, within `wait` seconds; with `force` whatever the guest says."""
        address = str(arguments["address"])
        seconds = min(max(float(arguments.get("wait", 10.0)), 0.0), MAX_SECONDS)
        force = bool(arguments.get("force"))

        def take() -> dict[str, object]:
            self._machine.detach(address, seconds=seconds, force=force)
            return {}

        return self._later(take)

    def cpus(self, value: str) -> Later:
        """Give the guest so many CPUs."""
        if not value.isdecimal():
            raise UnikvmError(f"cpus={value}: no number of CPUs")

        def change() -> dict[str, object]:
            self._machine.set_cpus(int(value))
            return {}

        return self._later(change)

    def disk(self, growth: dict[str, Any]) -> Later:
        """Make a disk larger: `path` of its image, and its new `size` as a user writes it; without, it has grown."""
        path, size = str(growth["path"]), str(growth.get("size", ""))

        def grow() -> dict[str, object]:
            self._machine.grow_disk(path, size or 0)
            return {}

        return self._later(grow)

    def _device(self, arguments: dict[str, Any]) -> Disk | Net:
        if len(arguments) != 1:
            raise UnikvmError("one device at a time", hint="disk or net")
        if "disk" in arguments:
            disk = Disk(**arguments["disk"])
            if not disk.readonly and not self._writable(os.path.abspath(disk.path)):
                raise CannotRun(
                    f"the host VM may not write to {disk.path}", hint=f"--disk {disk.path},ro, or start it with --share"
                )
            return disk
        fields = arguments["net"]
        return Net(**{**fields, "forwards": tuple(fields.get("forwards", ()))})

    def _later(self, work: Callable[[], object]) -> Later:
        loop = self._machine.parts.io.loop

        def start(reply: Callable[[object], None], fail: Callable[[UnikvmError], None]) -> None:
            def run() -> None:
                try:
                    result = work()
                except (UnikvmError, OSError) as error:
                    told = error if isinstance(error, UnikvmError) else CannotRun(str(error))
                    loop.call_soon(lambda: fail(told))
                    return
                loop.call_soon(lambda: reply(result))

            Thread(run, "command").start()

        return Later(start)
