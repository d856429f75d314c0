# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: CPUs and disks that come to a Linux guest, and go.

usage: plugging.py KERNEL INITRD IMAGE ROUNDS
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from unikvm import Machine
from unikvm.arch.x86_64.topology import Topology
from unikvm.errors import CannotRun
from unikvm.machine.config import Disk

kernel, initrd, image, rounds = sys.argv[1:]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except CannotRun as error:
        return str(error)
    raise AssertionError("it was not refused")


class Guest:
    """A shell on the guest's serial port."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def sh(self, command: str) -> str:
        self.machine.console.clear()
        self.machine.send(f"echo BE'GIN'; {command}; echo E'ND'\r".encode())
        said = self.machine.expect(b"END\r\n", timeout=30)
        return said.decode().rpartition("BEGIN\r\n")[2].rpartition("END")[0].replace("\r", "").strip()

    def until(self, command: str, answer: str) -> None:
        end = time.monotonic() + 20
        while (said := self.sh(command)) != answer:
            assert time.monotonic() < end, f"{command}: {said!r} is not {answer!r}; {self.sh('dmesg | tail -20')}"


def cpus(guest: Guest) -> None:
    machine = guest.machine
    guest.until("nproc", "2")
    machine.set_cpus(4)
    guest.until("nproc", "4")
    guest.until("cat /sys/devices/system/cpu/online", "0-3")
    machine.set_cpus(1)
    guest.until("cat /sys/devices/system/cpu/present", "0")
    assert [cpu["state"] for cpu in machine.cpus()] == ["on", "off", "off", "off"]
    machine.set_cpus(3)
    guest.until("nproc", "3")
    # Each of them runs something. The guest numbers them in the order in which it noticed them.
    mask = "$(printf %x $((1 << ${c##*/cpu})))"
    guest.until(f"for c in /sys/devices/system/cpu/cpu[0-9]*; do taskset {mask} nproc; done", "1\n1\n1")


def disks(guest: Guest) -> None:
    machine = guest.machine
    before = machine.devices()
    first = machine.attach(Disk(image))
    second = machine.attach(Disk(image + ".2", readonly=True))
    assert (first, second) == ("00:01.0", "00:02.0"), (first, second)
    guest.until("ls -1 /sys/block", "vda\nvdb")
    guest.until("test -b /dev/vda && head -c 5 /dev/vda", "hello")
    guest.sh("echo HELLO | dd of=/dev/vda conv=fsync 2>/dev/null")
    guest.until("cat /sys/block/vdb/ro", "1")
    machine.detach(first)
    guest.until("ls -1 /sys/block", "vdb")
    with open(image, "rb") as file:
        assert file.read(5) == b"HELLO"
    assert "00:02.0 (blk)" in refusal(lambda: machine.detach(first))
    assert machine.attach(Disk(image)) == first  # the lowest free slot
    machine.detach(first)
    machine.detach(second)
    assert machine.devices() == before
    guest.until("ls -1 /sys/block", "")


def again_and_again(guest: Guest, count: int) -> None:
    machine = guest.machine
    held = descriptors()
    for _ in range(count):
        address = machine.attach(Disk(image))
        machine.detach(address)
    assert descriptors() == held, (held, descriptors())
    assert not machine.parts.irq._vectors
    assert "No such file" in refusal(lambda: machine.attach(Disk("/no/such/image")))
    assert descriptors() == held
    address = machine.attach(Disk(image))
    guest.until("test -b /dev/vda && head -c 5 /dev/vda", "HELLO")
    machine.detach(address, force=True, seconds=0.0)
    guest.until("ls -1 /sys/block", "")


with Machine(
    kernel=kernel,
    initrd=initrd,
    cmdline="quiet console=ttyS0 panic=-1 unikvm.plug",
    console="serial",
    cpus=2,
    topology=Topology(sockets=2, cores=2),
    hotplug=True,
) as machine:
    machine.start()
    machine.expect(b"# ", timeout=90)
    guest = Guest(machine)
    cpus(guest)
    disks(guest)
    again_and_again(guest, int(rounds))
    guest.until("dmesg | grep -c -i 'acpi error'", "0")
