# SPDX-License-Identifier: GPL-2.0-only
"""Disks that grow while a guest without an operating system looks: raw ones, and one of qemu-storage-daemon's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.machine.config import Disk
from unikvm.machine.events import DebugExit
from unikvm.machine.machine import Machine
from unikvm.vhost.storage import BINARY
from unit.vhost.peer import make_qcow2

SECONDS = 90.0
MIB = 1 << 20


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_payload_sees_its_disk_grow(payload: Callable[[str], str], tmp_path: Path, kind: str, transport: str) -> None:
    """Twice, and both the new end and what is beyond it are where the guest was told. A raw image may grow alone."""
    if kind == "qcow2" and not shutil.which(BINARY):
        pytest.skip(f"no {BINARY} here")
    image = tmp_path / f"disk.{kind}"
    if kind == "raw":
        image.write_bytes(bytes(MIB))
    else:
        make_qcow2(image, MIB)
    with Machine(
        kernel=payload("growth.elf"),
        cmdline=transport,
        console="serial",
        memory="16M",
        transport=transport,
        disks=(Disk(str(image), kind=kind),),
    ) as machine:
        machine.start()
        machine.expect(f"sectors 0x{MIB // 512:x}\n".encode(), SECONDS)
        with pytest.raises(CannotRun, match="no disk becomes smaller"):
            machine.grow_disk(str(image), MIB // 2)
        machine.grow_disk(str(image), "3M")
        machine.expect(f"sectors 0x{3 * MIB // 512:x}\n".encode(), SECONDS)
        if kind == "raw":
            assert image.stat().st_size == 3 * MIB
            os.truncate(image, 5 * MIB + 512)
            machine.grow_disk(str(image))
        else:
            machine.grow_disk(str(image), 5 * MIB + 512)
        assert machine.wait(SECONDS) == DebugExit(0), machine.console
        lines = machine.console.decode().splitlines()
    assert [int(line.split()[1], 16) * 512 for line in lines] == [MIB, 3 * MIB, 5 * MIB + 512]
    if kind == "raw":
        assert image.read_bytes()[-512:] == b"\x5a" * 512
