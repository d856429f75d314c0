# SPDX-License-Identifier: GPL-2.0-only
"""Legacy devices, seen from a guest of some instructions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unikvm.errors import KvmError
from unikvm.machine.events import DebugExit, Event, Panic, PowerOff, Reset, Timeout, TripleFault
from unikvm.machine.machine import Access, Machine

Payload = Callable[[str], str]
SECONDS = 120.0


def make(kernel: str, cmdline: str = "", **fields: object) -> Machine:
    return Machine(kernel=kernel, cmdline=cmdline, console="serial", memory="16M", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "kind"),
    [("poweroff", PowerOff), ("cf9", Reset), ("i8042", Reset), ("pvpanic", Panic), ("triple", TripleFault)],
)
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_ends(payload: Payload, how: str, kind: type[Event], transport: str) -> None:
    with make(payload("ending.elf"), how, transport=transport) as machine:
        assert type(machine.run(timeout=SECONDS)) is kind


def test_a_guest_that_hangs_times_out(payload: Payload) -> None:
    with make(payload("ending.elf"), "hang") as machine:
        assert machine.run(timeout=0.5) == Timeout(0.5)


COUNTS = "it counts\n"
RATE_GENERATOR, ONE_SHOT = "status 0x34\n", "status 0x30\n"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("control", RATE_GENERATOR + COUNTS),
        ("count", RATE_GENERATOR + COUNTS),
        ("read", "0x0\n" + RATE_GENERATOR + COUNTS),
        ("gate", ONE_SHOT + COUNTS),
        ("speaker", "0x0\n" + ONE_SHOT + COUNTS),
    ],
)
def test_the_timer_is_there_from_the_first_access_on(payload: Payload, first: str, said: str) -> None:
    with make(payload("timer.elf"), first) as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
        assert machine.console.decode() == said


def test_a_timer_that_no_one_touched_was_not_made(payload: Payload) -> None:
    with make(payload("hello.elf")) as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
        with pytest.raises(KvmError, match="KVM_GET_PIT2"):
            machine.parts.vm.pit()


def test_serial_input_arrives_by_interrupt(payload: Payload) -> None:
    text = b"0123456789abcdef" * 20
    with make(payload("echo.elf")) as machine:
        machine.start()
        machine.expect(b"ready\n", timeout=SECONDS)
        machine.send(text + b"q")
        assert machine.wait(timeout=SECONDS) == DebugExit(0)
        assert bytes(machine.console) == b"ready\n" + text + b"q"


@pytest.mark.parametrize(("size", "seen"), [(1, "0x78"), (2, "0x5678"), (4, "0x12345678")])
def test_memory_mapped_access(payload: Payload, size: int, seen: str) -> None:
    with make(payload("mmio.elf"), f"size={size}", testdev=True) as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
        assert machine.console.decode() == f"{seen}\n"


def test_a_hook_sees_every_access(payload: Payload) -> None:
    seen: list[Access] = []
    with make(payload("storm.elf"), "in n=100 port=0x700") as machine:
        machine.on_pio(range(0x700, 0x701), seen.append)
        assert machine.run(timeout=SECONDS) == DebugExit(0)
    assert len(seen) == 100
    assert seen[0].address == 0x700


@pytest.mark.parametrize("kind", ["in", "out", "cpuid", "mmio"])
def test_storms_come_through(payload: Payload, kind: str) -> None:
    with make(payload("storm.elf"), f"{kind} n=200", testdev=True) as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
        assert machine.console.decode() == "start\nend\n"


def test_count(payload: Payload) -> None:
    with make(payload("count.elf"), "n=20000") as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
