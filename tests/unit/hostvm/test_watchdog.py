# SPDX-License-Identifier: GPL-2.0-only
"""The watchdog on a stand-in for QEMU: a child process and a console."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from unikvm.errors import CANNOT_RUN, HANG, PANIC
from unikvm.hostvm.watchdog import SILENCE, HostError, Watchdog
from unikvm.sys.process import Process, spawn


class Qemu:
    """What the watchdog looks at."""

    def __init__(self, script: str) -> None:
        self.process: Process = spawn(["/bin/sh", "-c", script])
        self.console = os.memfd_create("console")

    def print(self, text: str) -> None:
        os.write(self.console, text.encode())

    def close(self) -> None:
        self.process.close()
        os.close(self.console)


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    running = Qemu("exec sleep 60")
    yield running
    running.close()


def watch(qemu: Qemu) -> Watchdog:
    return Watchdog(qemu, 1.0)  # type: ignore[arg-type]


def test_a_panic_is_found_wherever_the_console_was_cut(qemu: Qemu) -> None:
    watchdog = watch(qemu)
    qemu.print("booting\r\n[ 1.0] Kernel panic - not ")
    watchdog.check()
    qemu.print("syncing: Fatal exception\r\n---[ end Kernel panic - not syncing: Fatal exception ]---\r\n")
    qemu.process.kill()
    with pytest.raises(HostError) as caught:
        watchdog.check()
    error = caught.value
    assert (error.kind, error.outcome) == ("host-panic", PANIC)
    assert error.message == "the host VM's kernel panicked: Fatal exception"
    assert error.console.startswith("booting\n")


def test_an_end_of_qemu() -> None:
    qemu = Qemu("echo no such option >&2; exit 1")
    qemu.process.wait(10)
    with pytest.raises(HostError, match="QEMU ended with status 1: no such option") as caught:
        watch(qemu).check()
    assert (caught.value.kind, caught.value.outcome) == ("host-died", CANNOT_RUN)
    qemu.close()


def test_a_killed_qemu(qemu: Qemu) -> None:
    qemu.process.kill()
    with pytest.raises(HostError, match="signal 9"):
        watch(qemu).check()


def test_silence_adds_up_and_an_answer_clears_it(qemu: Qemu) -> None:
    watchdog = watch(qemu)
    watchdog.waited(SILENCE * 0.9)
    watchdog.heard()
    watchdog.waited(SILENCE * 0.9)
    with pytest.raises(HostError) as caught:
        watchdog.waited(SILENCE * 0.2)
    assert (caught.value.kind, caught.value.outcome) == ("host-hang", HANG)


def test_the_tail_is_bounded(qemu: Qemu) -> None:
    qemu.print("x" * 10_000)
    assert len(watch(qemu).tail(100)) == 100
