# SPDX-License-Identifier: GPL-2.0-only
"""Ends of a run: the statuses that Documentation/architecture.md promises."""

from __future__ import annotations

import pytest

from unikvm.errors import CannotRun
from unikvm.machine.events import (
    CommandExit,
    DebugExit,
    Event,
    Hang,
    KvmFailure,
    Panic,
    PowerOff,
    Reset,
    Timeout,
    TripleFault,
    VmmFailure,
)


@pytest.mark.parametrize(
    ("event", "status", "name"),
    [
        (CommandExit(0), 0, "exit"),
        (CommandExit(119), 119, "exit"),
        (CommandExit(120), 119, "exit"),
        (CommandExit(255), 119, "exit"),
        (DebugExit(3), 3, "exit"),
        (PowerOff(), 0, "exit"),
        (Reset("i8042"), 0, "exit"),
        (Panic("Kernel panic"), 120, "guest-panic"),
        (TripleFault(0, 0x1000), 120, "guest-panic"),
        (Hang("nothing"), 121, "guest-hang"),
        (KvmFailure("bad"), 122, "kvm-error"),
        (VmmFailure(ValueError("x")), 123, "vmm-error"),
        (Timeout(2.0), 124, "time-out"),
        (VmmFailure(CannotRun("no image")), 125, "cannot-run"),
    ],
)
def test_statuses(event: Event, status: int, name: str) -> None:
    assert (event.outcome, event.name) == (status, name)
    assert "\n" not in event.detail


def test_the_true_status_is_kept() -> None:
    assert CommandExit(255).status == 255


def test_equality_is_by_kind_and_values() -> None:
    assert DebugExit(3) == DebugExit(3)
    assert DebugExit(3) != CommandExit(3)
    assert repr(DebugExit(3)).startswith("DebugExit(status=3")
