# SPDX-License-Identifier: GPL-2.0-only
"""Runs a plan in a host VM: the guest's images are ready, so the user half there has nothing to look up."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace

from unikvm.cli import reach
from unikvm.cli.outcome import save_result
from unikvm.cli.phases import Phases
from unikvm.cli.plan import Plan
from unikvm.cli.terminal import StatusLine, on_resize, raw_mode, say, window_size
from unikvm.control.names import Claim
from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm, with_host
from unikvm.hostvm.watchdog import HostError
from unikvm.images.artifacts import LAUNCHER, init_binary, kernel_half
from unikvm.images.kernel import find_kernel
from unikvm.observe.reasons import module_parameters
from unikvm.release import release
from unikvm.units import GIB

RESULT = "/run/unikvm-result.json"  # in the host VM


def run(plan: Plan) -> int:
    """Run to the end; returns the exit status."""
    # What the guest writes through its directory goes through the host VM.
    plan = plan.replace(shares=(*plan.shares, *(export.path for export in plan.exports if not export.readonly)))
    check_written(plan)
    progress = Progress(plan)
    kernel = find_kernel(plan.host_kernel, progress=progress.say)
    modules: tuple[str, ...] = ()
    if plan.config.net is not None and plan.config.net.kind == "tap":
        from unikvm.cli.options.network import HOST_MODULES

        modules = HOST_MODULES
    config = HostConfig(kernel=kernel, init=init_binary(), shares=plan.shares, modules=modules)
    if max(plan.config.memory, plan.config.max_memory) > config.memory - GIB // 2:
        from unikvm.cli.options.memory import host_memory

        config = replace(config, memory=host_memory(plan.config))
    plan = plan.replace(release=release())
    name = reach.claim(plan)
    try:
        return with_host(
            config, lambda host: _run_in(host, plan, name, progress), progress=progress.phase, say=progress.say
        )
    except HostError as error:
        progress.clear()
        tail = f"{error.console}\n" if getattr(error, "console", "") else ""
        os.write(2, tail.encode())
        raise
    finally:
        progress.clear()
        if name is not None:
            name.close()


def check_written(plan: Plan) -> None:
    """What the guest writes to has to be shared with the host VM. CannotRun where it is not."""
    config = plan.config
    written = [(disk.path, f", or --disk {disk.path},ro") for disk in config.disks if not disk.readonly]
    written += [(pmem.path, f", or --pmem {pmem.path},cow") for pmem in config.pmems if pmem.mode == "rw"]
    if config.firmware is not None and config.firmware.keep:
        written.append((config.firmware.vars, ""))
    for name, otherwise in written:
        path = os.path.abspath(name)
        if not plan.is_shared(path):
            hint = f"--share {os.path.dirname(path)}{otherwise}"
            raise CannotRun(f"the host VM may not write to {name}", hint=hint)


class Progress:
    """One line on a terminal that shows what is going on and vanishes; lines of their own with --verbose."""

    def __init__(self, plan: Plan) -> None:
        self._quiet = plan.quiet
        self._line = StatusLine(wanted=not plan.quiet and not plan.verbose)
        self._phases = Phases(plan.verbose)

    def phase(self, name: str) -> None:
        self._phases.begin(name)
        self._line.show(f"{name} ...")

    def say(self, line: str) -> None:
        self.clear()
        if not self._quiet:
            say(f"unikvm: {line}")

    def clear(self) -> None:
        """The guest's own output comes next."""
        self._phases.end()
        self._line.clear()


def _run_in(host: HostVm, plan: Plan, name: Claim | None, progress: Progress) -> int:
    module = kernel_half(host.config.kernel.release) if plan.config.kernel_half else None
    if module:
        progress.phase("loading the kernel half")
        host.insmod(module, module_parameters(host.config.kernel))
    elif plan.config.kernel_half:
        progress.say(f"no kernel half for {host.config.kernel.release}: going on without (make build builds it)")
    if plan.config.firmware is not None:
        from unikvm.cli.options.firmware import is_uefi
        from unikvm.hostvm.quirks import before_firmware

        before_firmware(host, uefi=is_uefi(plan.config.firmware))
    if plan.config.hugepages:
        from unikvm.cli.options.memory import set_aside_in

        set_aside_in(host, plan.config)
    if plan.own_init:
        from unikvm.hostvm.quirks import before_many_cpus

        cmdline = before_many_cpus(host, plan.config.cpus, plan.config.cmdline)
        plan = plan.replace(config=plan.config.replace(cmdline=cmdline))
    inner = plan.replace(result=RESULT if plan.result else None)
    if name is not None:
        from unikvm.cli.agent import HOST_MODULES, prepare_host
        from unikvm.cli.options import network

        if plan.own_init:
            prepare_host(host, HOST_MODULES)
        prepare_host(host, network.HOST_MODULES)  # a tap may be plugged in
        inner = inner.replace(front=os.getpid(), config=inner.config.replace(name=name.name))
    argv = [LAUNCHER, "run", "--prepared", inner.dump()]
    environment = {name: os.environ[name] for name in ("TERM", "LANG", "UNIKVM_DEBUG") if name in os.environ}
    progress.phase("starting the guest")
    with reach.Relay(name, host.relay) if name is not None else nullcontext():
        if plan.tty:
            status = _on_terminal(host, argv, environment, progress)
        else:
            progress.clear()
            status = host.exec(argv, cwd=_cwd(), env=environment, stdin=0, stdout=1, stderr=2).shell_status
    if plan.result:
        save_result(plan.result, host.read(RESULT))
    if status < 128:
        return status
    progress.say(f"the user half in the host VM ended with signal {status - 128}")
    return CANNOT_RUN


def _on_terminal(host: HostVm, argv: list[str], environment: dict[str, str], progress: Progress) -> int:
    """The terminal is the host VM's pty, on which the user half there puts the guest's; it also serves Ctrl-A."""
    progress.clear()
    on_resize(host.resize)
    with raw_mode():
        return host.run_interactive(argv, cwd=_cwd(), env=environment, size=window_size()).shell_status


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
