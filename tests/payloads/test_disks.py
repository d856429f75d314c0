# SPDX-License-Identifier: GPL-2.0-only
"""A disk, from a guest without an operating system: served here, and by qemu-storage-daemon in another process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.machine.config import Disk
from unikvm.machine.events import DebugExit
from unikvm.machine.machine import Machine
from unikvm.vhost.storage import BINARY, serve
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.vhostblk import VhostBlk

SECONDS = 60.0
TEXT = "sector 0\n"
SECTORS = 8


def has_direct_io(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("server", ["here", "direct", "there"])
def test_a_payload_writes_and_reads(
    payload: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, transport: str
) -> None:
    """With PCI each answer wakes the guest by MSI-X. No doorbell exits to this process."""
    exits: list[int] = []
    monkeypatch.setattr(VirtioDevice, "ring", lambda _device, index: exits.append(index))
    if server == "there" and not shutil.which(BINARY):
        pytest.skip(f"no {BINARY} here")
    image = tmp_path / "disk"
    image.write_bytes(TEXT.encode().ljust(512, b"\0") + bytes(512 * 63))
    if server == "direct" and not has_direct_io(image):
        pytest.skip("no direct I/O here, as on the tmpfs of a host VM")
    disk = Disk(str(image), direct=server == "direct", queues=2)
    said: list[str] = []
    with Machine(
        kernel=payload("disk.elf"),
        cmdline=f"{transport} n={SECTORS}",
        console="serial",
        memory="16M",
        transport=transport,
        disks=(disk,) if server != "there" else (),
        devices=()
        if server != "there"
        else (VhostBlk(serve(str(image), kind="raw", readonly=False), say=said.append),),
    ) as machine:
        assert machine.run(timeout=SECONDS) == DebugExit(0)
        assert machine.console.decode() == TEXT
    assert not said
    assert not exits
    content = image.read_bytes()
    assert [content[512 * sector] for sector in range(SECTORS + 2)] == [ord("s"), *range(1, SECTORS + 1), 0]
