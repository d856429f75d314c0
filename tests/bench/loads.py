# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: keeps a guest of each VMM busy with the same things in turn, and measures each.

usage: loads.py JSON

{"guests": {VMM: {"argv": [...], "serve": DIR or "", "host": [[...], ...], "guest": [...]}},
 "servers": [[...], ...],
 "rounds": N,
 "loads": {NAME: {"command": ..., "few": N, "many": N, "prepare": ...}}}

All guests run at once, each with a shell on its standard input and output, and wait while another one works. `serve` is
a directory for a virtiofsd of the guest's own, the connection to which is descriptor {fd} of `argv`. `host` and
`guest` are commands that put a guest in order, from outside and in its shell. Of a load with `{n}` in its command the
figure is the difference of `many` and `few` by their difference; of another one it is the whole.

Prints a line as soon as a load is done, of JSON: its name, and by VMM the medians of two figures in nanoseconds
(instructions, where this host is under icount): of everything that happens, and of the VMM's process without its vCPU.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 100.0
TAIL = 4096
VCPU_THREADS = ("vcpu/0", "CPU 0/KVM")  # ours, QEMU's
_MARK = b"@@"
_CPUCLOCK_SCHED = 2  # in the number of a clock that is a process's (Linux: posix-timers.h)


class Spent(NamedTuple):
    """Nanoseconds: by the clock, and of the VMM's threads but for the vCPU's."""

    all: float
    beside: float

    def per(self, few: Spent, count: int) -> Spent:
        return Spent((self.all - few.all) / count, (self.beside - few.beside) / count)


class Shell:
    """A guest's shell, with pipes for a terminal."""

    def __init__(self, name: str, argv: list[str], *, serve: str = "") -> None:
        self.name = name
        self._backend: Any = None
        fds = []
        if serve:
            self._backend = file_server(serve)
            connection = self._backend.open()
            fds.append(connection.fileno())
            argv = [word.replace("{fd}", str(fds[0])) for word in argv]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=fds
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._count = 0
        self.run("stty -echo 2>/dev/null; PS1=; export PATH=/bin:/sbin:/usr/bin:/usr/sbin")

    def beside(self) -> int:
        """Nanoseconds that the process has had, but for its vCPU; the time of threads that ended counts."""
        pid = self.process.pid
        total = time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED)
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().strip() in VCPU_THREADS:
                total -= int((task / "schedstat").read_text().split()[0])
        return total

    def run(self, command: str) -> Spent:
        """From a command's first byte to the word that it has ended, with status 0."""
        self._count += 1
        # In two parts, so that the echo of the line is not taken for its end.
        line = f"{command}\necho '{_MARK.decode()}''{self._count}' $?.\n".encode()
        mark = _MARK + b"%d " % self._count
        before, beside = time.monotonic_ns(), self.beside()
        os.write(self._in, line)
        seen = b""
        deadline = time.monotonic() + SECONDS
        while mark not in seen or b"." not in seen.partition(mark)[2]:
            if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SystemExit(f"{self.name}: {command!r} is silent: {seen!r}")
            data = os.read(self._out, 1 << 16)
            if not data:
                raise SystemExit(f"{self.name}: ended at {command!r}: {seen!r}")
            seen = seen[-TAIL:] + data
        spent = Spent(time.monotonic_ns() - before, self.beside() - beside)
        status = seen.partition(mark)[2].partition(b".")[0]
        if status != b"0":
            raise SystemExit(f"{self.name}: {command!r} failed with {status!r}: {seen!r}")
        return spent

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._backend is not None:
            self._backend.close()


def say(text: str) -> None:
    print(f"bench: {time.monotonic():5.0f} s of the host VM: {text}", file=sys.stderr, flush=True)


def file_server(path: str) -> Any:
    """virtiofsd as `unikvm run --root` starts it."""
    from unikvm.vhost import virtiofsd

    return virtiofsd.serve(virtiofsd.find(), path, readonly=True)


def measure(shell: Shell, load: dict[str, Any], *, warm_up: bool = False) -> Spent:
    """One round of `load`; to warm up, its short part."""

    def once(count: int) -> Spent:
        if "prepare" in load:
            shell.run(load["prepare"])
        return shell.run(load["command"].replace("{n}", str(count)))

    few = once(load.get("few", 0))
    if warm_up or "{n}" not in load["command"]:
        return few
    return once(load["many"]).per(few, load["many"] - load["few"])


def main() -> None:
    plan = json.loads(sys.argv[1])
    servers = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for argv in plan.get("servers", ())]
    shells = []
    try:
        for name, guest in plan["guests"].items():
            say(f"booting {name}")
            shells.append(Shell(name, guest["argv"], serve=guest.get("serve", "")))
            for argv in guest.get("host", ()):
                subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            for command in guest.get("guest", ()):
                shells[-1].run(command)
        for name, load in plan["loads"].items():
            for shell in shells:
                say(f"{name}: {shell.name}")
                measure(shell, load, warm_up=True)
            found: dict[str, list[Spent]] = {shell.name: [] for shell in shells}
            for _ in range(plan["rounds"]):
                for shell in shells:
                    found[shell.name].append(measure(shell, load))
            medians = {vmm: list(map(statistics.median, zip(*rounds, strict=True))) for vmm, rounds in found.items()}
            print(json.dumps([name, medians]), flush=True)
    finally:
        for shell in shells:
            shell.close()
        for server in servers:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
