# SPDX-License-Identifier: GPL-2.0-only
"""Disks behind qemu-storage-daemon: a real one, on a qcow2 image, driven over guest memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from struct import pack, unpack_from

import pytest

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from unikvm.vhost import storage
from unikvm.vhost.backend import Program
from unikvm.virtio.vhostblk import VhostBlk
from unit.vhost.peer import make_qcow2

from .driver import Bench, bench

SIZE = 8 << 20
SECONDS = 20.0


def version() -> tuple[int, ...]:
    """Of qemu-storage-daemon; (0,) where there is none."""
    if not shutil.which(storage.BINARY):
        return (0,)
    said = subprocess.run([storage.BINARY, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return tuple(map(int, said.split()[2].split(".")))


VERSION = version()

pytestmark = pytest.mark.skipif(not shutil.which(storage.BINARY), reason=f"no {storage.BINARY} here")


class Disk:
    """A driver of one queue of a disk."""

    def __init__(self, bench: Bench, device: VhostBlk, index: int = 0) -> None:
        self.bench = bench
        self.device = device
        self.index = index
        self.ring = bench.rings[index]

    def submit(self, kind: int, sector: int, data: bytes | int) -> tuple[int, int]:
        """Make a request available: addresses of its data and its status."""
        header = self.bench.buffer(pack("<IIQ", kind, 0, sector))
        buffer, status = self.bench.buffer(data), self.bench.buffer(b"\xff")
        if kind == VIRTIO_BLK_T_IN:
            self.ring.add([header], [buffer, status])
        else:
            self.ring.add([header, buffer], [status])
        return buffer[0], status[0]

    def wait(self, count: int = 1) -> None:
        """Ring, and wait for `count` answers."""
        self.device.ring(self.index)
        end = time.monotonic() + SECONDS
        got = 0
        while got < count:
            assert time.monotonic() < end, "no answer"
            self.bench.settle(1)
            got += len(self.ring.take_used())
            time.sleep(0.005)

    def write(self, sector: int, data: bytes) -> int:
        _, status = self.submit(VIRTIO_BLK_T_OUT, sector, data)
        self.wait()
        return self.bench.memory.read(status, 1)[0]

    def read(self, sector: int, size: int) -> bytes:
        buffer, status = self.submit(VIRTIO_BLK_T_IN, sector, size)
        self.wait()
        assert self.bench.memory.read(status, 1) == b"\0"
        return self.bench.memory.read(buffer, size)


@contextmanager
def disk(
    path: Path,
    *,
    readonly: bool = False,
    writethrough: bool = False,
    queues: int = 1,
    direct: bool = False,
    say: Callable[[str], object] = print,
) -> Iterator[Disk]:
    backend = storage.serve(
        str(path), kind="qcow2", readonly=readonly, writethrough=writethrough, queues=queues, direct=direct
    )
    device = VhostBlk(backend, path=str(path), readonly=readonly, queues=queues, grow=backend.grow, say=say)
    with bench(device) as on:
        on.start(size=64)
        yield Disk(on, device)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'disk, "quoted".qcow2'
    make_qcow2(path, SIZE)
    return path


def test_a_qcow2_keeps_what_was_written(image: Path) -> None:
    data = os.urandom(4096)
    with disk(image) as it:
        assert unpack_from("<Q", it.device.config)[0] == SIZE // 512
        assert it.read(0, 512) == bytes(512)
        assert it.write(100, data) == 0
        assert it.read(100, 4096) == data
        assert it.write(SIZE // 512, data) == VIRTIO_BLK_S_IOERR
        assert it.bench.transport.queue_interrupts[0] >= 1
    with disk(image) as it:
        assert it.read(100, 4096) == data


def test_several_queues_past_the_page_cache(image: Path) -> None:
    with disk(image, queues=3, direct=True) as it:
        assert it.device.negotiated(VIRTIO_BLK_F_MQ)
        assert unpack_from("<H", it.device.config, 34)[0] == 3
        for index in range(3):
            assert Disk(it.bench, it.device, index).write(8 * index + 1, bytes([index + 1]) * 512) == 0
        assert [it.read(8 * index + 1, 512) for index in range(3)] == [bytes([n]) * 512 for n in (1, 2, 3)]


def test_a_read_only_disk(image: Path) -> None:
    image.chmod(0o400)
    with disk(image, readonly=True) as it:
        assert it.device.offered >> VIRTIO_BLK_F_RO & 1
        assert it.write(0, bytes(512)) == VIRTIO_BLK_S_IOERR


def test_a_disk_grows_with_its_image_and_is_served_to_its_end(image: Path) -> None:
    data = os.urandom(512)
    with disk(image) as it:
        it.device.grow(2 * SIZE)
        assert unpack_from("<Q", it.device.config)[0] == SIZE // 256
        assert it.bench.transport.config_interrupts == 1
        assert it.write(SIZE // 256 - 1, data) == 0
        assert it.write(SIZE // 256, data) == VIRTIO_BLK_S_IOERR
        it.device.grow(3 * SIZE)
    with disk(image) as it:
        assert it.device.size == 3 * SIZE
        assert it.read(SIZE // 256 - 1, 512) == data


def test_what_does_not_grow_is_told_in_its_words(image: Path) -> None:
    with disk(image) as it:
        with pytest.raises(CannotRun, match=r"The image size is too large|too large|larger"):
            it.device.grow(1 << 62)
        backend = it.device.backend
        assert isinstance(backend, storage.Storage)
        os.kill(backend.pid, signal.SIGKILL)
        with pytest.raises(CannotRun, match=r"monitor|takes no commands"):
            it.device.grow(2 * SIZE)
        assert it.write(0, bytes(512)) == VIRTIO_BLK_S_IOERR
        with pytest.raises(CannotRun, match="takes no commands any more"):
            it.device.grow(2 * SIZE)
        assert it.device.size == SIZE


def test_a_monitor_that_is_silent_is_given_up(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came later would be taken for the answer to something else. The disk goes on."""
    monkeypatch.setattr(storage, "MONITOR_SECONDS", 0.3)
    with disk(image) as it:
        backend = it.device.backend
        assert isinstance(backend, storage.Storage)
        os.kill(backend.pid, signal.SIGSTOP)
        with pytest.raises(CannotRun, match="timed out"):
            it.device.grow(2 * SIZE)
        os.kill(backend.pid, signal.SIGCONT)
        with pytest.raises(CannotRun, match="takes no commands any more"):
            it.device.grow(2 * SIZE)
        assert it.write(0, bytes(512)) == 0


def test_the_end_of_a_back_end_is_that_of_a_command(image: Path) -> None:
    with disk(image) as it:
        backend = it.device.backend
        assert isinstance(backend, storage.Storage)
        os.kill(backend.pid, signal.SIGSTOP)
        refused: SimpleQueue[CannotRun] = SimpleQueue()

        def grow() -> None:
            with pytest.raises(CannotRun) as caught:
                it.device.grow(2 * SIZE)
            refused.put(caught.value)

        thread = threading.Thread(target=grow)
        thread.start()
        time.sleep(0.2)
        before = time.monotonic()
        backend.stop()
        assert "monitor" in str(refused.get(timeout=SECONDS))
        assert time.monotonic() - before < storage.MONITOR_SECONDS / 2
        thread.join()


def test_after_its_end_another_one_makes_it_larger(image: Path) -> None:
    with disk(image, writethrough=True) as it:
        it.device.grow(2 * SIZE)
        backend = it.device.backend
        assert isinstance(backend, storage.Storage)
        os.kill(backend.pid, signal.SIGKILL)
        assert it.write(2 * SIZE // 512 - 1, bytes(512)) == 0  # by its successor
        it.device.grow(3 * SIZE)
        assert it.write(3 * SIZE // 512 - 1, bytes(512)) == 0


@pytest.mark.skipif(VERSION < (8, 1), reason=f"{storage.BINARY} says nothing of a disk that grows before 8.1")
def test_the_back_end_says_that_it_has_grown(image: Path) -> None:
    """Whoever had it grow: here somebody at its monitor."""
    with disk(image) as it:
        backend = it.device.backend
        assert isinstance(backend, storage.Storage)
        backend.grow(2 * SIZE)
        end = time.monotonic() + SECONDS
        while it.device.size != 2 * SIZE:
            assert time.monotonic() < end
            it.bench.settle(1)
        assert it.bench.transport.config_interrupts == 1
        assert it.write(2 * SIZE // 512 - 1, bytes(512)) == 0


def test_kill_9_of_the_back_end_is_survived_with_requests_under_way(image: Path) -> None:
    said: list[str] = []
    with disk(image, writethrough=True, say=said.append) as it:
        first = it.device.backend
        assert isinstance(first, Program)
        assert it.write(0, b"before".ljust(512, b".")) == 0
        os.kill(first.pid, signal.SIGSTOP)  # it takes nothing any more
        requests = [it.submit(VIRTIO_BLK_T_OUT, sector, bytes([sector]) * 512) for sector in range(8, 16)]
        it.device.ring(0)
        os.kill(first.pid, signal.SIGKILL)
        it.wait(len(requests))
        assert [it.bench.memory.read(status, 1) for _, status in requests] == [b"\0"] * 8
        assert it.read(0, 512).startswith(b"before")
        assert it.read(9, 512) == bytes([9]) * 512
        assert "starting it again" in said[0]
        assert said[1].endswith("is back")


def test_with_what_was_written_the_disk_is_lost(image: Path) -> None:
    """What was answered may not be in the image: errors from then on, and for what is under way."""
    said: list[str] = []
    with disk(image, say=said.append) as it:
        backend = it.device.backend
        assert isinstance(backend, Program)
        assert it.write(0, bytes(512)) == 0
        os.kill(backend.pid, signal.SIGSTOP)
        requests = [it.submit(VIRTIO_BLK_T_OUT, sector, bytes(512)) for sector in range(8)]
        it.device.ring(0)
        os.kill(backend.pid, signal.SIGKILL)
        it.wait(len(requests))
        assert [it.bench.memory.read(status, 1)[0] for _, status in requests] == [VIRTIO_BLK_S_IOERR] * 8
        assert it.write(0, bytes(512)) == VIRTIO_BLK_S_IOERR
        assert it.device.fault == ""
        assert said == [f"qemu-storage-daemon of {image} is lost: signal 9 ended it"]


def test_a_back_end_that_keeps_dying_is_given_up(image: Path) -> None:
    said: list[str] = []
    with disk(image, writethrough=True, say=said.append) as it:
        image.write_bytes(b"no image any more".ljust(1 << 16))
        backend = it.device.backend
        assert isinstance(backend, Program)
        os.kill(backend.pid, signal.SIGKILL)
        assert it.write(0, bytes(512)) == VIRTIO_BLK_S_IOERR
        assert len(said) == 4
        assert backend.pid == 0


@pytest.mark.parametrize("content", [b"", b"no image".ljust(1 << 16)])
def test_what_is_no_image_is_refused_in_its_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.qcow2"
    path.write_bytes(content)
    device = VhostBlk(storage.serve(str(path), kind="qcow2", readonly=False))
    with pytest.raises(CannotRun, match=r"not in qcow2 format|ended"), bench(device):
        pass
    device.discard()
    with pytest.raises(CannotRun, match="cannot read and write"):
        storage.serve(str(tmp_path / "none"), kind="qcow2", readonly=False)
