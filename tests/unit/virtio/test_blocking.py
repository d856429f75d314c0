# SPDX-License-Identifier: GPL-2.0-only
"""A request that does not end: who else waits for it, for how long, and what becomes of the device."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest

from unikvm.errors import CannotRun, UnikvmError
from unikvm.uapi.virtio import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_CONFIG_S_NEEDS_RESET,
)
from unikvm.virtio import blocking
from unikvm.virtio.blk import Blk
from unit.virtio.driver import ALIVE, Bench, bench

PATIENCE = 0.1
SOON = 2.0  # what is not to wait for the request may take that long on a busy machine
CONTENT = os.urandom(1 << 16)


class Gate:
    """Stands in for a file system that does not answer: requests wait in it until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.paths: set[str] = set()
        self._descriptors: dict[int, str] = {}
        for name in ("fdatasync", "preadv"):
            monkeypatch.setattr(os, name, self._through(getattr(os, name)))

    def _through(self, call: Callable[..., object]) -> Callable[..., object]:
        def through(fd: int, *rest: object) -> object:
            if os.readlink(f"/proc/self/fd/{fd}") in self.paths:
                self.inside.release()
                assert self.open.wait(30)
            return call(fd, *rest)

        return through


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(blocking, "PATIENCE", PATIENCE)
    it = Gate(monkeypatch)
    yield it
    it.open.set()


@pytest.fixture
def image(tmp_path: Path, gate: Gate) -> Path:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Bench]:
    with bench(Blk(str(image), queues=2)) as it:
        it.patience = PATIENCE
        it.start()
        yield it


def ask(it: Bench, kind: int, room: int = 0, queue: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
    """Begin a request; where its data and its status will be."""
    data, status = it.buffer(room), it.buffer(b"\xee")
    it.rings[queue].add([it.buffer(pack("<IIQ", kind, 0, 0))], [data, status] if room else [status])
    it.kick(queue)
    return data, status


def hang(it: Bench, gate: Gate, image: Path, kind: int, room: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
    gate.paths.add(str(image))
    places = ask(it, kind, room)
    assert gate.inside.acquire(timeout=10)
    return places


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def locked(image: Path) -> bool:
    try:
        Blk(str(image)).discard()
    except CannotRun:
        return True
    return False


def test_registers_and_other_disks_go_on(disk: Bench, gate: Gate, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    _, status = hang(disk, gate, image, VIRTIO_BLK_T_FLUSH)
    with bench(Blk(str(other))) as second:
        second.start()
        begin = time.monotonic()
        assert disk.device.read_config(0, 8) == len(CONTENT) // 512
        disk.device.write_status(ALIVE)
        data, done = ask(second, VIRTIO_BLK_T_IN, 4096)
        assert time.monotonic() - begin < SOON
        assert second.memory.read(*done) == b"\0"
        assert second.memory.read(*data) == CONTENT[:4096]
    assert disk.memory.read(*status) == b"\xee"
    gate.open.set()
    until(lambda: disk.rings[0].take_used())
    assert disk.memory.read(*status) == b"\0"


@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN])
def test_a_reset_is_complete_when_the_request_is(disk: Bench, gate: Gate, image: Path, kind: int) -> None:
    """§2.4.2: the driver waits until the status is 0; nothing is written to its memory from then on."""
    data, status = hang(disk, gate, image, kind, 4096 if kind == VIRTIO_BLK_T_IN else 0)
    waiting = ask(disk, VIRTIO_BLK_T_FLUSH)[1]
    begin = time.monotonic()
    disk.device.write_status(0)
    assert PATIENCE <= time.monotonic() - begin < SOON
    for value in (0, 1, ALIVE, 0):  # a driver that does not look
        disk.device.write_status(value)
        assert disk.device.status == ALIVE
    disk.device.disable_queue(disk.device.queues[0])
    assert time.monotonic() - begin < SOON
    assert disk.memory.read(*status) == b"\xee"
    gate.open.set()
    until(lambda: disk.device.status == 0)
    assert not any(queue.active for queue in disk.device.queues)
    assert disk.memory.read(*waiting) == b"\xee", "a request that was not begun is not carried out any more"
    gate.paths.clear()
    disk.start()
    data, status = ask(disk, VIRTIO_BLK_T_IN, 512)
    until(lambda: disk.rings[0].take_used())
    assert disk.memory.read(*data) == CONTENT[:512]


def test_a_reset_in_time_is_complete_at_once(
    disk: Bench, gate: Gate, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "PATIENCE", 10.0)
    hang(disk, gate, image, VIRTIO_BLK_T_FLUSH)
    threading.Timer(0.1, gate.open.set).start()
    disk.device.write_status(0)
    assert disk.device.status == 0


def test_a_queue_that_is_taken_out_of_service_is_when_the_request_ends(disk: Bench, gate: Gate, image: Path) -> None:
    """§4.2.2.2: the driver reads QueueReady back."""
    hang(disk, gate, image, VIRTIO_BLK_T_FLUSH)
    queue = disk.device.queues[0]
    disk.device.disable_queue(queue)
    assert queue.ready
    gate.open.set()
    until(lambda: not queue.ready)
    assert not queue.active
    assert disk.device.queues[1].active


def test_a_fault_in_another_queue_waits_as_well(disk: Bench, gate: Gate, image: Path) -> None:
    hang(disk, gate, image, VIRTIO_BLK_T_FLUSH)
    disk.rings[1].set_avail_idx(0x8000)
    disk.device.ring(1)
    assert not disk.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    gate.open.set()
    until(lambda: disk.device.status & VIRTIO_CONFIG_S_NEEDS_RESET)
    assert disk.transport.config_interrupts == 1


def test_a_snapshot_is_refused(disk: Bench, gate: Gate, image: Path) -> None:
    state = disk.device.save()
    hang(disk, gate, image, VIRTIO_BLK_T_FLUSH)
    with pytest.raises(UnikvmError, match="does not end"):
        disk.device.save()
    with pytest.raises(UnikvmError, match="does not end"):
        disk.device.restore(state)
    gate.open.set()
    until(lambda: disk.device.status == 0)


@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN])
def test_the_end_of_the_machine_does_not_wait(gate: Gate, image: Path, kind: int) -> None:
    """The image stays open, and locked, for as long as the request is under way; so does the guest's memory."""
    before = os.listdir("/proc/self/fd")
    it = Bench(Blk(str(image)))
    it.patience = PATIENCE
    it.start()
    hang(it, gate, image, kind, 4096 if kind == VIRTIO_BLK_T_IN else 0)
    interrupts = dict(it.transport.queue_interrupts)
    begin = time.monotonic()
    it.close()
    it.device.discard()
    it.close()
    assert time.monotonic() - begin < SOON
    assert locked(image)
    gate.open.set()
    until(lambda: not locked(image))
    until(lambda: len(os.listdir("/proc/self/fd")) == len(before))
    assert it.transport.queue_interrupts == interrupts, "there is nobody to interrupt"


def test_a_defect_ends_the_run(disk: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(os, "preadv", defect)
    with pytest.raises(ZeroDivisionError):
        ask(disk, VIRTIO_BLK_T_IN, 512)
