# SPDX-License-Identifier: GPL-2.0-only
"""What `resize` means with a balloon, with memory that is plugged in, and with both; where images go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unikvm.arch.x86_64 import layout
from unikvm.errors import CannotRun, UnikvmError
from unikvm.machine import ram
from unikvm.machine.config import Config, Pmem
from unikvm.memory import GuestMemory
from unikvm.uapi.kvm import KVM_MEM_READONLY
from unikvm.units import GIB, MIB


def made(**fields: Any) -> ram.Ram:
    return ram.prepare(Config(kernel="k", memory=GIB, **fields))


def test_both() -> None:
    """Below what there is from the start the balloon, above it plugged in."""
    it = made(balloon=True, max_memory=4 * GIB)
    assert it.balloon is not None
    assert it.mem is not None
    for size, balloon, plugged in ((512 * MIB, 512 * MIB, 0), (2 * GIB, 0, GIB), (GIB, 0, 0), (4 * GIB, 0, 3 * GIB)):
        it.resize(size)
        assert (it.balloon.target, it.mem.requested) == (balloon, plugged)
        assert it.wanted == size
        assert it.actual == GIB  # there is no guest that follows
    it.balloon.write_config(4, 4, 100)
    assert it.actual == GIB - 100 * 4096


def test_the_balloon_waits_for_what_is_to_be_pulled_out() -> None:
    it = made(balloon=True, max_memory=2 * GIB)
    assert it.balloon is not None
    assert it.mem is not None
    later: list[Callable[[], object]] = []
    memory = GuestMemory(layout.ram_layout(it.size))
    it.attach(memory, Slots(), lambda _seconds, callback: later.append(callback))  # type: ignore[arg-type]
    plugged = it.mem._state  # what only the guest changes
    for late in (False, True):
        it.resize(2 * GIB)
        plugged.plugged_size = GIB
        it.resize(768 * MIB)
        assert (it.balloon.target, it.mem.requested, it.wanted, it.actual) == (0, 0, 768 * MIB, 2 * GIB)
        if not late:
            plugged.plugged_size = 0
            it.mem.changed()
        else:
            later[-2]()  # of an earlier `resize`
            assert it.balloon.target == 0
            later[-1]()
        assert it.balloon.target == 256 * MIB
    memory.close()


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"balloon": True}, 2 * GIB, r"from 16M to 1G, not to 2G \(--mem ...,max="),
        ({"balloon": True}, MIB, "from 16M to 1G, not to 1M"),
        ({"balloon": True}, 512 * MIB + 1, "by multiples"),
        ({"max_memory": 2 * GIB}, 512 * MIB, r"from 1G to 2G, not to 512M \(--mem ...,balloon"),
        ({"max_memory": 2 * GIB}, GIB + MIB, "by multiples of 2M"),
    ],
)
def test_sizes_that_cannot_be(fields: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(UnikvmError, match=message):
        made(**fields).resize(size)


class Slots:
    """KVM, as far as memory slots go."""

    def __init__(self) -> None:
        self.slots: list[tuple[int, int, int, int]] = []

    def set_user_memory_region(self, slot: int, gpa: int, size: int, _hva: int, flags: int = 0) -> None:
        self.slots.append((slot, gpa, size, flags))


def test_images_are_above_everything(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(4 * MIB))
    it = made(max_memory=2 * GIB, pmems=(Pmem(f"{tmp_path}/a", "ro"), Pmem(f"{tmp_path}/b")))
    memory = GuestMemory(layout.ram_layout(it.size), pluggable=it.pluggable)
    slots = Slots()
    it.attach(memory, slots, lambda _seconds, _callback: None)  # type: ignore[arg-type]
    assert slots.slots == [(2, 5 * GIB, 4 * MIB, KVM_MEM_READONLY), (3, 6 * GIB, 4 * MIB, 0)]
    assert it.end == 6 * GIB + 4 * MIB
    assert memory.size == GIB
    assert memory.regions[-1].gpa == 4 * GIB
    for device in it.devices:
        device.discard()
    memory.close()


def test_nothing_is_left_open_when_an_image_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * MIB))
    with pytest.raises(CannotRun, match="No such file"):
        made(pmems=(Pmem(f"{tmp_path}/a"), Pmem(f"{tmp_path}/b")))
    again = made(pmems=(Pmem(f"{tmp_path}/a"),))
    again.pmems[0].discard()
