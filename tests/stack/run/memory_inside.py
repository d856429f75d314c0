# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: a Linux guest whose memory is taken away and given more, through the library.

usage: memory_inside.py KERNEL INITRD

Prints what it measured as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from unikvm import Machine
from unikvm.units import MIB

WORDS = "quiet console=ttyS0 panic=-1 memhp_default_state=online_movable"
PROMPT = b"# "


def resident() -> int:
    """MiB of this process that are in memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmRSS"))


def wait(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    """Seconds until `condition` was so."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError("it did not come to be so")
        time.sleep(0.02)
    return round(time.monotonic() - start, 2)


def free(machine: Machine) -> int:
    """MiB that are free in the guest: the most of three seconds, as pages that are being reported do not count."""
    most = 0
    for _ in range(10):
        time.sleep(0.3)
        most = max(most, machine.memory_statistics()["free"] >> 20)
    return most


class Shell:
    """The guest's shell on its serial port."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._count = 0
        machine.expect(PROMPT, timeout=90)

    def run(self, command: str, timeout: float = 60.0) -> str:
        """What `command` prints."""
        self._count += 1
        print(time.monotonic(), command, file=sys.stderr, flush=True)
        mark = f"done{self._count}."
        self._machine.console.clear()
        self._machine.send(f"echo BEG''IN; {command}; echo {mark[:-1]}''.\r".encode())
        shown = self._machine.expect(f"\n{mark}".encode(), timeout)
        return shown.decode().partition("BEGIN")[2].rpartition(mark)[0].strip()

    def total(self) -> int:
        """MiB that the guest's kernel counts as its own."""
        return int(self.run("cat /proc/meminfo").split()[1]) >> 10


def main() -> None:
    found: dict[str, object] = {}
    kernel, initrd = sys.argv[1:]
    with Machine(
        kernel=kernel,
        initrd=initrd,
        cmdline=WORDS,
        console="serial",
        memory="256M",
        max_memory="1280M",
        balloon=True,
    ) as machine:
        machine.start()
        shell = Shell(machine)
        found["total"] = shell.total()
        found["statistics"] = machine.memory_statistics()
        found["booted"] = resident()

        shell.run("dd if=/dev/zero of=/x bs=1M count=90 2>&1")
        found["written"] = resident()
        shell.run("rm /x")
        try:
            found["reporting-seconds"] = wait(lambda: resident() < int(str(found["written"])) - 70, 20)
        except TimeoutError:
            pass
        found["reported"] = resident()
        found["free"] = free(machine)

        shell.run("dd if=/dev/zero of=/x bs=1M count=90 2>&1; rm /x")
        machine.resize("160M")
        found["inflate-seconds"] = wait(lambda: machine.memory_size == (160 * MIB, 160 * MIB))
        found["inflated"] = resident()
        found["free-inflated"] = free(machine)
        shell.run("mkdir /t; mount -t tmpfs -o size=1G none /t; dd if=/dev/zero of=/t/x bs=1M count=110 2>&1")
        found["size-after-oom"] = machine.memory_size[1] >> 20
        found["killed"] = shell.run("dmesg | grep -ci 'killed process'")
        found["written-size"] = shell.run("du -m /t/x | cut -f1")
        shell.run("rm /t/x")

        machine.resize("1280M")
        found["hot-add-seconds"] = wait(lambda: machine.memory_size[1] == 1280 * MIB)
        found["total-added"] = shell.total()
        shell.run("dd if=/dev/zero of=/t/x bs=1M count=600 2>&1")
        found["written-added"] = resident()
        shell.run("umount /t")
        machine.resize("256M")
        found["remove-seconds"] = wait(lambda: machine.memory_size[1] == 256 * MIB)
        found["removed"] = resident()
        found["total-removed"] = shell.total()
    print(json.dumps(found))


main()
