# SPDX-License-Identifier: GPL-2.0-only
"""virtio-pmem: images as memory, and flushes that nobody else waits for."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack

import pytest

from unikvm.errors import CannotRun, GuestFault
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_NEEDS_RESET
from unikvm.virtio.pmem import ALIGN, Pmem
from unit.virtio.driver import Bench, bench

GPA = 8 << 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"content".ljust(ALIGN, b"."))
    return path


@contextmanager
def running(image: Path, mode: str = "rw") -> Iterator[tuple[Pmem, Bench]]:
    device = Pmem(str(image), mode=mode)
    device.place(GPA)
    with bench(device) as it:
        it.memory.attach(GPA, device.mapping.view, device.mapping.address)
        it.start()
        yield device, it


def wait_for(it: Bench, condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        it.settle(1)
        time.sleep(0.002)


def flush(it: Bench) -> tuple[int, int]:
    """Ask for one; where its answer will be."""
    answer = it.buffer(b"\xff" * 4)
    it.rings[0].add([it.buffer(pack("<I", 0))], [answer])
    it.kick(0)
    return answer


def answer_of(it: Bench, buffer: tuple[int, int]) -> int:
    value: int = unpack("<I", it.memory.read(*buffer))[0]
    return value


def test_devices_reach_it_and_what_is_written_is_in_the_file(image: Path) -> None:
    with running(image) as (device, it):
        assert (device.read_config(0, 8), device.read_config(8, 8)) == (GPA, ALIGN)
        assert it.memory.read(GPA, 7) == b"content"
        it.memory.write(GPA, b"CONTENT")
        assert it.memory.host_address(GPA + 5) == device.mapping.address + 5
        with pytest.raises(GuestFault):
            it.memory.give_back(GPA, 4096)
        it.memory.give_back_view(it.memory.view(GPA, 4096))
        assert it.memory.read(GPA, 7) == b"CONTENT"
    assert image.read_bytes().startswith(b"CONTENT")


@pytest.mark.parametrize("mode", ["ro", "cow"])
def test_what_is_not_to_be_written_is_not(image: Path, mode: str) -> None:
    """`ro` is KVM's business; a device that the guest points there writes what is forgotten."""
    image.chmod(0o444)
    with running(image, mode) as (device, it):
        assert device.readonly == (mode == "ro")
        it.memory.write(GPA, b"CONTENT")
        buffer = flush(it)
        assert it.rings[0].take_used() != []
        assert answer_of(it, buffer) == 0
    assert image.read_bytes().startswith(b"content")


def test_flushes_wait_on_a_thread_of_their_own(image: Path) -> None:
    """Those that come meanwhile are served by one more."""
    gate = threading.Semaphore(0)
    calls = []
    with running(image) as (device, it):
        it.patience = 0.05

        def sync() -> None:
            calls.append(threading.get_ident())
            assert gate.acquire(timeout=10)

        device.sync = sync
        buffers = [flush(it)]
        wait_for(it, lambda: calls)
        buffers += [flush(it), flush(it)]
        assert it.rings[0].take_used() == []
        gate.release()
        wait_for(it, lambda: len(calls) == 2)
        assert len(it.rings[0].take_used()) == 1
        gate.release()
        wait_for(it, lambda: it.rings[0].used_idx != it.rings[0].avail_idx and it.rings[0].take_used())
        assert [answer_of(it, buffer) for buffer in buffers] == [0, 0, 0]
    assert len(calls) == 2
    assert threading.get_ident() not in calls


def test_a_flush_that_fails_says_so(image: Path) -> None:
    def sync() -> None:
        raise OSError(errno.EIO, "")

    with running(image) as (device, it):
        device.sync = sync
        buffer = flush(it)
        wait_for(it, it.rings[0].take_used)
        assert answer_of(it, buffer) == 1


def test_a_snapshot_waits_for_the_flush(image: Path) -> None:
    gate = threading.Semaphore(0)
    with running(image) as (device, it):
        it.patience = 0.05
        device.sync = lambda: assert_true(gate.acquire(timeout=10))
        buffer = flush(it)
        threading.Timer(0.2, gate.release).start()
        state = device.save()
        assert answer_of(it, buffer) == 0
        assert len(it.rings[0].take_used()) == 1
        device.restore(state)
        buffer = flush(it)
        gate.release()
        wait_for(it, it.rings[0].take_used)
        assert answer_of(it, buffer) == 0


def assert_true(value: bool) -> None:
    assert value


@pytest.mark.parametrize(("data", "room"), [(b"\0\0\0", 4), (b"\0\0\0\0", 3), (b"\0\0\0\0", 0)])
def test_short_requests(image: Path, data: bytes, room: int) -> None:
    with running(image) as (device, it):
        it.rings[0].add([it.buffer(data)], [it.buffer(room)] if room else [])
        it.kick(0)
        assert device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_an_unknown_request_fails(image: Path) -> None:
    with running(image) as (_, it):
        answer = it.buffer(4)
        it.rings[0].add([it.buffer(pack("<I", 7))], [answer])
        it.kick(0)
        assert answer_of(it, answer) == 1


@pytest.mark.parametrize(
    ("size", "message"),
    [(None, "No such file"), (0, "is empty"), (ALIGN + 512, "no whole multiple of 2 MiB \\(truncate -s %2M")],
)
def test_images_that_will_not_do(tmp_path: Path, size: int | None, message: str) -> None:
    path = tmp_path / "image"
    if size is not None:
        path.write_bytes(bytes(size))
    with pytest.raises(CannotRun, match=message):
        Pmem(str(path))


def test_an_image_in_use(image: Path) -> None:
    first = Pmem(str(image))
    with pytest.raises(CannotRun, match="in use"):
        Pmem(str(image), mode="cow")
    first.discard()
    one, other = Pmem(str(image), mode="cow"), Pmem(str(image), mode="ro")
    one.discard()
    other.discard()
