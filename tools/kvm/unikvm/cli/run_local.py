# SPDX-License-Identifier: GPL-2.0-only
"""Runs a plan on this host: the machine, the terminal, and the outcome."""

from __future__ import annotations

import os

from unikvm.cli.phases import Phases
from unikvm.cli.plan import Plan
from unikvm.cli.terminal import EscapeFilter, Output, lost, on_resize, raw_mode, say, window_size
from unikvm.errors import CannotRun
from unikvm.machine.events import CommandExit, Event, Panic, PowerOff, Reset
from unikvm.machine.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.cli.agent import AgentAccess
    from unikvm.machine.agent import Agent
    from unikvm.machine.newvm import NewVm
    from unikvm.virtio.console import Console
    from unikvm.virtio.device import VirtioDevice

READ_SIZE = 4096
END_OF_INPUT = b"\x04"  # what a terminal sends for Ctrl-D
SECONDS_TO_POWER_OFF = 30.0
SECONDS_TO_SYNC = 10.0


def run(plan: Plan, new: NewVm | None = None) -> int:
    """Run to the end; returns the exit status. Errors before the guest runs are raised. `new`: a VM that was begun."""
    phases = Phases(plan.verbose)
    name = None
    if plan.reachable:
        from unikvm.cli import reach

        name = reach.claim(plan)
        if name is not None:
            plan = plan.replace(config=plan.config.replace(name=name.name))
    guest = _Guest(plan)
    try:
        phases.begin("building the machine")
        with Machine(plan.config, output=guest.print, devices=guest.devices, say=_teller(plan), new=new) as machine:
            phases.begin("running")
            guest.connect(machine)
            if plan.reachable:
                reach.serve(plan, machine, name, guest.access)
            with raw_mode(0 if plan.tty else -1):
                event = guest.run(machine)
            if plan.exits:
                show_exits(machine)
    finally:
        phases.end()
        if name is not None:
            name.close()
    from unikvm.cli.outcome import finish

    return finish(plan, event, phases.seconds("running"), machine.kernel_half)


def load_kernel_half(plan: Plan) -> None:
    """Insert the kernel half that was built for this kernel, where there is none loaded and it is ours to do."""
    if os.path.exists("/dev/unikvm") or os.geteuid():
        return
    from unikvm.images.artifacts import kernel_half

    release = os.uname().release
    module = kernel_half(release)
    if module is None:
        return
    from unikvm.images.kernel import find_kernel
    from unikvm.observe.reasons import module_parameters
    from unikvm.sys.module import insert

    try:
        parameters = module_parameters(find_kernel(f"/boot/vmlinuz-{release}"))
    except CannotRun:
        parameters = ""  # exits are counted without their reasons
    try:
        insert(module, parameters)
        how = "done"
    except CannotRun as error:
        how = str(error)
    if not plan.quiet:
        say(f"unikvm: loading the kernel half: {how}")


def show_exits(machine: Machine) -> None:
    """The kernel half's account of the run."""
    companion = machine.parts.companion
    if companion is None:
        say("unikvm: no kernel half: nothing was counted")
        return
    if not companion.info.has_reasons:
        say("unikvm: the kernel half was loaded without offsets from BTF: hardware reasons are all 'other'")
    from unikvm.observe import exits

    for line in exits.table(exits.read(companion)).splitlines():
        say(line)


def _environment(plan: Plan) -> dict[str, str]:
    if plan.env is None:
        return {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
    pairs = (text.partition("=") for text in plan.env)
    return {name: value for name, _, value in pairs}


def _directories(plan: Plan) -> tuple[VirtioDevice, ...]:
    if not plan.exports:
        return ()
    from unikvm.cli.options.directories import devices

    return devices(plan, _teller(plan))


def _mounts(plan: Plan) -> list[tuple[str, ...]]:
    if not plan.exports and not plan.root_type:
        return []
    from unikvm.cli.options.directories import mounts

    return mounts(plan)


def _teller(plan: Plan) -> Callable[[str], None]:
    """Where news of back ends go."""
    return (lambda _line: None) if plan.quiet else lambda line: say(f"unikvm: {line}")


class _Guest:
    """The guest's consoles and its agent, as `plan` wants them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.access: AgentAccess | None = None
        self._event: Event | None = None
        self._agent: Agent | None = None
        self._console: Console | None = None
        self._post: Callable[[Event], None] = lambda _event: None
        self._leave: Callable[[], None] = lambda: None
        self._on_virtio = False
        self._typing = not plan.command or plan.tty
        self._escape = EscapeFilter(lambda: self._leave(), lambda text: os.write(1, text))
        self._output = Output(2 if plan.command and not plan.tty else 1)
        self._panics: Callable[[bytes], None] = lambda _data: None
        self.devices: tuple[VirtioDevice, ...] = self._make_devices() if plan.linux else ()
        if plan.reachable:
            from unikvm.cli.agent import AgentAccess

            self.access = AgentAccess(linux=plan.linux, own_init=plan.own_init)
            self.devices += self.access.devices

    def _make_devices(self) -> tuple[VirtioDevice, ...]:
        from unikvm.virtio.console import Console
        from unikvm.virtio.port import Port
        from unikvm.virtio.rng import Rng

        plan = self._plan
        ports: tuple[Port, ...] = ()
        if plan.command:
            from unikvm.machine.agent import Agent

            self._agent = Agent(
                plan.command,
                self._ended,
                console=plan.tty,
                size=window_size(),
                env=_environment(plan),
                cwd=plan.cwd,
                user=plan.user,
                setup=_mounts(plan),
                watchdog=plan.watchdog,
            )
            ports = self._agent.ports
        console = None
        if plan.config.console == "virtio":
            console = Port(
                source=0 if self._typing else None,
                sink=self._output.fd,
                tap=lambda data: self._panics(data),
                on_guest_open=self._console_open,
                on_sink_lost=lost,
                transform=self._escape.feed if plan.tty else None,
                on_source_end=lambda _total: self._end_of_input(),
            )
        columns, rows = window_size()
        self._console = Console(console, ports, columns=columns, rows=rows)
        return (self._console, Rng(), *_directories(plan))

    def print(self, data: bytes) -> None:
        """What the serial port sends; nothing while the guest's console, which says the same, is the virtio one."""
        if self._on_virtio:
            return
        self._output.write(data)

    def connect(self, machine: Machine) -> None:
        """The machine exists: its events, its serial port's input, its watchdog."""
        self._leave = machine.stop
        self._panics = machine.parts.panics.feed
        self._post = machine.post
        self._output.ended = lambda: machine.ending
        loop = machine.parts.io.loop
        if self._agent is not None:
            self._agent.start(loop)
        if self._plan.config.console == "serial" and self._typing:
            feed = machine.parts.serial_input.feed
            # A boot loader takes any key for a user who wants something else than the default.
            at_end = END_OF_INPUT if self._plan.config.firmware is None else b""

            def typed() -> None:
                data = os.read(0, READ_SIZE)
                if data:
                    feed(self._escape.feed(data) if self._plan.tty else data)
                else:
                    loop.remove(0)
                    feed(at_end)

            try:
                loop.add(0, typed)
            except PermissionError:  # a file, which is always ready
                feed(os.read(0, 1 << 20) + at_end)
        if self._plan.tty:
            on_resize(self._resized)

    def run(self, machine: Machine) -> Event:
        """Boot, wait for the end, and let a guest with writable disks put its data in order."""
        machine.start()
        event = machine.wait(self._plan.timeout)
        if self._event is not None and isinstance(event, PowerOff):
            return self._event  # the power-off that `_ended` asked for
        if self._plan.command and isinstance(event, Reset):
            return Panic(f"{event.detail} before the command ended")
        return event

    def _console_open(self, is_open: bool) -> None:
        self._on_virtio = is_open

    def _ended(self, event: Event) -> None:
        """The agent's word. What the command wrote may still be in the guest's memory: see that it arrives."""
        if self._agent is None or not isinstance(event, CommandExit):
            self._post(event)
        elif any(not disk.readonly for disk in self._plan.config.disks):
            self._event = event
            self._agent.power_off(SECONDS_TO_POWER_OFF)
        elif any(not export.readonly for export in self._plan.exports):
            self._agent.sync(SECONDS_TO_SYNC, lambda: self._post(event))
        else:
            self._post(event)

    def _end_of_input(self) -> None:
        if self._console is not None and not self._plan.tty and self._console.ports[0] is not None:
            self._console.ports[0].send(END_OF_INPUT)

    def _resized(self, columns: int, rows: int) -> None:
        if self._console is not None:
            self._console.resize(columns, rows)
        if self._agent is not None:
            self._agent.resize(columns, rows)
