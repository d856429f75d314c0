# SPDX-License-Identifier: GPL-2.0-only
"""Makes a guest reachable by its name while it runs: here, or through the host VM that it runs in."""

from __future__ import annotations

import os
import time

from unikvm.control import names
from unikvm.errors import CannotRun, UnikvmError
from unikvm.sys.eventloop import EventLoop
from unikvm.sys.thread import Thread
from unikvm.sys.unixsocket import accept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.cli.agent import AgentAccess
    from unikvm.cli.plan import Plan
    from unikvm.control.server import Server
    from unikvm.machine.machine import Machine

_PORTS = "/sys/class/virtio-ports"


def claim(plan: Plan) -> names.Claim | None:
    """The guest's name among those that run; None for one that is not to be reached."""
    if not plan.reachable or plan.front:
        return None
    return names.claim(plan.config.name, exact=plan.named)


def serve(plan: Plan, machine: Machine, name: names.Claim | None, access: AgentAccess | None = None) -> None:
    """Answer for `machine` from now on, until its io thread ends. Before it runs."""
    if name is None and not plan.front:
        return
    loop = machine.parts.io.loop
    if access is not None:
        access.start(loop)
    began = time.monotonic()
    servers: list[Server] = []

    def take(fd: int) -> None:
        # What answers is loaded for the first who asks: most guests run without, and start sooner.
        if not servers:
            servers.append(_server(plan, machine, access, began))
        servers[0].serve(fd)

    if name is None:
        from unikvm.control.mux import Mux

        Mux(loop, _relay_port(), take)
    else:
        listen(loop, name, take)


def _server(plan: Plan, machine: Machine, access: AgentAccess | None, began: float) -> Server:
    """All that `machine`, which runs since `began`, can be asked for."""
    from unikvm.control.commands import MachineCommands
    from unikvm.control.server import Server

    def exits(_arguments: object) -> str:
        companion = machine.parts.companion
        if companion is None:
            raise UnikvmError("no kernel half counts this guest's exits", hint="`unikvm doctor` says why")
        from unikvm.observe import exits

        return exits.table(exits.read(companion))

    server = Server(machine.parts.io.loop)
    facts = {"name": plan.config.name, "pid": plan.front or os.getpid(), "kernel": plan.spec}
    MachineCommands(server, machine, facts, lambda path: not plan.front or plan.is_shared(path), began=began)
    server.command("exits", exits)
    if access is not None:
        access.serve(server, plan.config.name)
    return server


def listen(loop: EventLoop, name: names.Claim, take: Callable[[int], object]) -> None:
    """Hand every connection to the name to `take`, on the loop's thread."""

    def knocked() -> None:
        try:
            take(accept(name.listener))
        except BlockingIOError:
            pass  # who knocked went away

    loop.add(name.listener.fileno(), knocked)


def _relay_port() -> int:
    """The port of this host VM that leads out to the front end."""
    from unikvm.wire import PORT_RELAY

    for port in os.listdir(_PORTS):
        with open(f"{_PORTS}/{port}/name") as file:
            if file.read().strip() == PORT_RELAY:
                return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
    raise CannotRun(f"this host VM has no port {PORT_RELAY}")


class Relay:
    """Passes connections to the name on to the guest in the host VM, on a thread of its own. A context manager."""

    def __init__(self, name: names.Claim, port: int) -> None:
        from unikvm.control.mux import Mux

        self._loop = EventLoop()
        self._thread = Thread(self._loop.run, "relay")
        self._mux = Mux(self._loop, os.dup(port))
        listen(self._loop, name, self._mux.open)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon(self._mux.close)
        self._loop.stop()
        self._thread.join()
        self._loop.close()
