# SPDX-License-Identifier: GPL-2.0-only
"""What a guest was told is on the disk, is there: the VMM is killed while a guest writes and flushes, again and again.

A process that is killed loses nothing of the page cache, so this is about what is answered before it was done, and
about what a back end keeps to itself. That a flush is fdatasync, before its answer: tests/unit/virtio/test_blk.py.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from processes import all_ended, children
from unikvm.uapi.virtio import VIRTIO_BLK_T_IN
from unikvm.vhost import storage
from unikvm.virtio.vhostblk import VhostBlk
from unit.vhost.peer import make_qcow2
from unit.virtio.driver import bench

ROUNDS = int(os.environ.get("UNIKVM_ROUNDS", "100"))  # of each kind of disk; fewer where everything is slow
BLOCK = 4096
BLOCKS = 2048
BATCH = 3  # blocks from one flush to the next
SECONDS = 120.0
LONGEST = 0.1  # seconds from the first flush to the end of a round
MAIN = Path(__file__).resolve().parents[2] / "tools/kvm/unikvm/__main__.py"


def one_round(kernel: str, disk: str, start: int, moment: float) -> int:
    """Let a guest write from number `start` on, and kill the VMM with its back ends `moment` seconds after the first
    number was said to be on the disk. Returns the last number of which that was said."""
    command = [sys.executable, "-I", "-S", str(MAIN), "run", "--host", "local", "--no-kernel-half", "-q", "-m", "16M"]
    process = subprocess.Popen(
        [*command, "-d", disk, "-p", f"start={start} blocks={BLOCKS} batch={BATCH}", kernel],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        assert ready, "the guest has not begun"
        time.sleep(moment)
    finally:
        below = children(process.pid)
        process.kill()
    for child in below:
        assert all_ended([child], SECONDS), f"process {child} outlives the VMM"
    said, errors = process.communicate(timeout=SECONDS)
    lines = said.split(b"\n")[:-1]  # the last one may be incomplete
    assert process.returncode == -9, (said[-100:], errors)
    return int(lines[-1], 16) if lines else start - 1


def check(content: bytes, first: int, last: int) -> None:
    """Every block from number `first` to `last` is there, unless a later one was being written over it."""
    for number in range(max(first, last + BATCH + 1 - BLOCKS), last + 1):
        at = number % BLOCKS * BLOCK
        expected = number.to_bytes(4, "little").ljust(64, b"\0") * (BLOCK // 64)
        assert content[at : at + BLOCK] == expected, f"block {number} of {last} is lost"


def content_of(path: Path) -> bytes:
    """What a disk holds: of a qcow2 by a back end of its own."""
    if path.suffix != ".qcow2":
        return path.read_bytes()
    content = b""
    with bench(VhostBlk(storage.serve(str(path), kind="qcow2", readonly=True), readonly=True)) as disk:
        disk.start()
        ring, data, status = disk.rings[0], disk.buffer(1 << 20), disk.buffer(b"\xee")
        for offset in range(0, BLOCK * BLOCKS, 1 << 20):
            ring.add([disk.buffer(pack("<IIQ", VIRTIO_BLK_T_IN, 0, offset // 512))], [data, status])
            disk.device.ring(0)
            end = time.monotonic() + SECONDS
            while not ring.take_used():
                assert time.monotonic() < end, "no answer"
                disk.settle(1)
            assert disk.memory.read(*status) == b"\0"
            content += disk.memory.read(*data)
    return content


def make(path: Path) -> None:
    """An empty disk, nothing of it allocated."""
    if path.suffix == ".qcow2":
        make_qcow2(path, BLOCK * BLOCKS)
    else:
        path.write_bytes(b"")
        os.truncate(path, BLOCK * BLOCKS)


@pytest.mark.parametrize("how", ["raw", "direct", "qcow2"])
def test_nothing_that_was_flushed_is_lost(payload: Callable[[str], str], tmp_path: Path, how: str) -> None:
    """Now and then on a new disk, so that blocks are allocated all the time."""
    if how == "qcow2" and not shutil.which(storage.BINARY):
        pytest.skip(f"no {storage.BINARY} here")
    path = tmp_path / f"disk.{how}"
    kernel = payload("writer.elf")
    disk = f"{path},direct" if how == "direct" else str(path)
    moments = random.Random(how)
    flushed, first = 0, 1
    for _ in range(ROUNDS):
        if not path.exists() or flushed - first > BLOCKS:
            make(path)
            first = flushed + 1
        last = one_round(kernel, disk, flushed + 1, moments.uniform(0, LONGEST))
        check(content_of(path), first, last)
        flushed = last
    assert flushed > 2 * ROUNDS, "hardly anything was written"
    print(f"{how}: {ROUNDS} rounds, {flushed} blocks")


def test_the_check_finds_what_is_lost() -> None:
    """A block that is missing, or older."""
    numbers = [block.to_bytes(4, "little").ljust(64, b"\0") * (BLOCK // 64) for block in range(BLOCKS)]
    check(b"".join(numbers), 1, 100)
    numbers[100] = numbers[99]
    with pytest.raises(AssertionError, match="block 100 of 100 is lost"):
        check(b"".join(numbers), 1, 100)
