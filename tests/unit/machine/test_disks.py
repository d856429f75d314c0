# SPDX-License-Identifier: GPL-2.0-only
"""Which disk is meant."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unikvm.errors import CannotRun
from unikvm.machine import disks
from unikvm.virtio.growing import Growing
from unikvm.virtio.rng import Rng


class Disk(Growing):
    name = "blk"
    config = (2048).to_bytes(60, "little")

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.path = path
        self.asked: list[int] = []

    def enlarge(self, size: int) -> None:
        self.asked.append(size)


def parts(*devices: object) -> Any:
    return SimpleNamespace(pci=None, devices=list(devices))


def test_a_disk_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is written; every disk of that file, and no other."""
    for name in ("a", "b"):
        (tmp_path / name).touch()
    os.symlink("a", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    one, other, twin, nameless = Disk("a"), Disk(f"{tmp_path}/b"), Disk("./a"), Disk()
    machine = parts(Rng(), one, other, twin, nameless)
    for path in ("a", f"{tmp_path}/link", "../" + tmp_path.name + "/a"):
        disks.grow(machine, path, 1 << 21)
    assert (one.asked, twin.asked) == ([1 << 21] * 3, [1 << 21] * 3)
    disks.grow(machine, "b", 0)
    assert other.asked == [0]
    with pytest.raises(CannotRun, match=rf"has no disk \. \(its disks: a, {tmp_path}/b, \./a\)"):
        disks.grow(machine, ".", 0)
    with pytest.raises(CannotRun, match=r"has no disk a \(it has none\)"):
        disks.grow(parts(Rng()), "a", 0)
    assert not nameless.asked


def test_facts() -> None:
    assert disks.facts(Disk("a")) == {"image": "a", "size": "1M"}
    assert disks.facts(Disk()) == disks.facts(Rng()) == {}
