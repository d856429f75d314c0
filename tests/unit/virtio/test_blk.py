# SPDX-License-Identifier: GPL-2.0-only
"""The block device: requests, their bounds, the image's locks and errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.errors import CannotRun
from unikvm.sys import fallocate
from unikvm.uapi.virtio import (
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_CONFIG_S_NEEDS_RESET,
)
from unikvm.virtio.blk import Blk
from unit.virtio.driver import Bench, bench

SECTORS = 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(512 * SECTORS))
    return path


@pytest.fixture
def said() -> list[str]:
    """What the user is told."""
    return []


@pytest.fixture
def disk(image: Path) -> Iterator[Bench]:
    with bench(Blk(str(image), serial="serial-1")) as it:
        it.start()
        yield it


def request(it: Bench, kind: int, sector: int, out: bytes = b"", room: int = 0) -> tuple[int, bytes]:
    """One request: (status, data that came back)."""
    readable = [it.buffer(pack("<IIQ", kind, 0, sector))]
    if out:
        readable.append(it.buffer(out))
    data = it.buffer(room)
    status = it.buffer(b"\xee")
    head = it.rings[0].add(readable, [data, status] if room else [status], indirect=True)
    it.kick(0)
    assert [element[0] for element in it.rings[0].take_used()] == [head]
    return it.memory.read(*status)[0], it.memory.read(*data)


def test_configuration(disk: Bench) -> None:
    assert disk.device.read_config(0, 8) == SECTORS
    assert disk.device.read_config(20, 4) == 512  # blk_size
    assert disk.device.negotiated(VIRTIO_BLK_F_FLUSH)
    assert len(disk.device.config) == 60
    assert disk.device.read_config(56, 1) == 1  # write_zeroes_may_unmap
    assert disk.device.read_config(34, 2) == 1  # num_queues
    assert disk.device.read_config(200, 8) == 0


def test_read(disk: Bench, image: Path) -> None:
    assert request(disk, VIRTIO_BLK_T_IN, 3, room=4096) == (
        VIRTIO_BLK_S_OK,
        image.read_bytes()[1536 : 1536 + 4096],
    )


def test_read_into_scattered_buffers(disk: Bench, image: Path) -> None:
    buffers = [disk.buffer(size) for size in (1, 511, 1000, 24)]
    status = disk.buffer(b"\xee")
    disk.rings[0].add([disk.buffer(pack("<IIQ", VIRTIO_BLK_T_IN, 0, 1))], [*buffers, status])
    disk.kick(0)
    assert disk.rings[0].take_used()[0][1] == 1537
    assert b"".join(disk.memory.read(*buffer) for buffer in buffers) == image.read_bytes()[512 : 512 + 1536]


def test_header_split_and_status_joined(disk: Bench, image: Path) -> None:
    """§2.7.4: no assumption about how a request is cut into descriptors."""
    header = pack("<IIQ", VIRTIO_BLK_T_IN, 0, 2)
    joined = disk.buffer(513)
    disk.rings[0].add([disk.buffer(header[:5]), disk.buffer(header[5:])], [joined])
    disk.kick(0)
    assert disk.memory.read(*joined) == image.read_bytes()[1024:1536] + b"\0"


def test_write_and_flush(disk: Bench, image: Path) -> None:
    data = os.urandom(1024)
    assert request(disk, VIRTIO_BLK_T_OUT, 5, out=data)[0] == VIRTIO_BLK_S_OK
    assert request(disk, VIRTIO_BLK_T_FLUSH, 0)[0] == VIRTIO_BLK_S_OK
    assert image.read_bytes()[2560:3584] == data


def test_header_and_data_joined(disk: Bench, image: Path) -> None:
    data = os.urandom(512)
    status = disk.buffer(b"\xee")
    disk.rings[0].add([disk.buffer(pack("<IIQ", VIRTIO_BLK_T_OUT, 0, 9) + data)], [status])
    disk.kick(0)
    assert disk.memory.read(*status) == b"\0"
    assert image.read_bytes()[4608:5120] == data


def test_write_through_without_flush(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with bench(Blk(str(image))) as it:
        it.start(features=it.device.offered & ~(1 << VIRTIO_BLK_F_FLUSH))
        request(it, VIRTIO_BLK_T_OUT, 0, out=bytes(512))
    assert len(synced) == 1


def test_get_id(disk: Bench) -> None:
    assert request(disk, VIRTIO_BLK_T_GET_ID, 0, room=20) == (VIRTIO_BLK_S_OK, b"serial-1".ljust(20, b"\0"))
    assert request(disk, VIRTIO_BLK_T_GET_ID, 0, room=4) == (VIRTIO_BLK_S_OK, b"seri")


def test_discard_and_write_zeroes(disk: Bench, image: Path) -> None:
    before = image.read_bytes()
    ranges = pack("<QIIQII", 0, 8, 0, 16, 8, 0)
    assert request(disk, VIRTIO_BLK_T_DISCARD, 0, out=ranges)[0] == VIRTIO_BLK_S_OK
    for flags, sector in ((0, 32), (1, 40)):
        body = pack("<QII", sector, 2, flags)
        assert request(disk, VIRTIO_BLK_T_WRITE_ZEROES, 0, out=body)[0] == VIRTIO_BLK_S_OK
    after = image.read_bytes()
    assert len(after) == len(before)
    assert after[32 * 512 : 34 * 512] == after[40 * 512 : 42 * 512] == bytes(1024)
    assert after[34 * 512 : 40 * 512] == before[34 * 512 : 40 * 512]


def test_write_zeroes_where_fallocate_cannot(disk: Bench, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(fallocate, "zero_range", refuse)
    monkeypatch.setattr(fallocate, "punch_hole", refuse)
    before = image.read_bytes()
    assert request(disk, VIRTIO_BLK_T_WRITE_ZEROES, 0, out=pack("<QII", 1, 3, 0))[0] == VIRTIO_BLK_S_OK
    assert request(disk, VIRTIO_BLK_T_DISCARD, 0, out=pack("<QII", 8, 3, 0))[0] == VIRTIO_BLK_S_OK
    assert image.read_bytes() == before[:512] + bytes(1536) + before[2048:]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (VIRTIO_BLK_T_DISCARD, pack("<QII", SECTORS - 1, 2, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, pack("<QII", (1 << 64) - 1, 2, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, pack("<QII", 0, 1, 1), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_DISCARD, b"short", VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, b"", VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, bytes(16 * 17), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, pack("<QII", 0, 0xFFFF_FFFF, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, pack("<QII", 0, 1, 2), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, pack("<QIIQII", 0, 1, 0, SECTORS, 1, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_OUT, bytes(100), VIRTIO_BLK_S_IOERR),
        (0x55, b"", VIRTIO_BLK_S_UNSUPP),
    ],
)
def test_bad_requests(disk: Bench, image: Path, kind: int, body: bytes, status: int) -> None:
    before = image.read_bytes()
    assert request(disk, kind, 0, out=body)[0] == status
    assert image.read_bytes() == before


@pytest.mark.parametrize("sector", [SECTORS, SECTORS - 1, 1 << 55, (1 << 64) - 1])
def test_beyond_the_end(disk: Bench, image: Path, sector: int) -> None:
    before = image.read_bytes()
    assert request(disk, VIRTIO_BLK_T_IN, sector, room=1024)[0] == VIRTIO_BLK_S_IOERR
    assert request(disk, VIRTIO_BLK_T_OUT, sector, out=bytes(1024))[0] == VIRTIO_BLK_S_IOERR
    assert image.read_bytes() == before


def test_errors_of_the_host(disk: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr(os, "fdatasync", full)
    assert request(disk, VIRTIO_BLK_T_OUT, 0, out=bytes(512))[0] == VIRTIO_BLK_S_IOERR
    assert request(disk, VIRTIO_BLK_T_FLUSH, 0)[0] == VIRTIO_BLK_S_IOERR
    assert request(disk, VIRTIO_BLK_T_IN, 0, room=512)[0] == VIRTIO_BLK_S_OK


def test_a_failed_flush_is_never_made_good(image: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports an error of writing back once, and forgets what it could not write."""
    fdatasync = os.fdatasync

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    with bench(Blk(str(image), say=said.append)) as it:
        it.start()
        monkeypatch.setattr(os, "fdatasync", fails)
        assert request(it, VIRTIO_BLK_T_FLUSH, 0)[0] == VIRTIO_BLK_S_IOERR
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        assert request(it, VIRTIO_BLK_T_FLUSH, 0)[0] == VIRTIO_BLK_S_IOERR
        assert request(it, VIRTIO_BLK_T_IN, 0, room=512)[0] == VIRTIO_BLK_S_OK
    assert said[0] == f"disk {image}: lost: the guest has an I/O error"
    assert len(said) == 2


def test_a_flush_is_answered_after_the_disk_has_it(disk: Bench, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before is in the file, and the driver sees no answer, when fdatasync begins."""
    fdatasync, seen = os.fdatasync, []

    def look(fd: int) -> None:
        (index,) = unpack("<H", disk.memory.read(disk.rings[0].used + 2, 2))
        seen.append((image.read_bytes()[:512], index, disk.memory.read(*status)))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", look)
    ring, data, status = disk.rings[0], os.urandom(512), disk.buffer(b"\xee")
    ring.add(
        [disk.buffer(pack("<IIQ", VIRTIO_BLK_T_OUT, 0, 0)), disk.buffer(data)], [disk.buffer(b"\xee")], indirect=True
    )
    ring.add([disk.buffer(pack("<IIQ", VIRTIO_BLK_T_FLUSH, 0, 0))], [status])
    disk.kick(0)
    assert seen == [(data, 0, b"\xee")]
    assert len(ring.take_used()) == 2
    assert disk.memory.read(*status) == b"\0"


def test_image_that_shrinks(image: Path, said: list[str]) -> None:
    with bench(Blk(str(image), say=said.append)) as it:
        it.start()
        os.truncate(image, 512)
        for _ in range(2):
            assert request(it, VIRTIO_BLK_T_IN, 0, room=1024)[0] == VIRTIO_BLK_S_IOERR
    assert said == [f"disk {image}: somebody has made the image shorter: the guest has an I/O error"]


@pytest.mark.parametrize("direct", [False, True])
def test_several_queues(image: Path, direct: bool) -> None:
    with bench(Blk(str(image), queues=4, direct=direct)) as it:
        it.start()
        assert it.device.negotiated(VIRTIO_BLK_F_MQ)
        assert it.device.read_config(34, 2) == 4
        written = []
        for index, ring in enumerate(it.rings):
            data = os.urandom(1536)
            ring.add(
                [it.buffer(pack("<IIQ", VIRTIO_BLK_T_OUT, 0, 4 * index + 1)), it.buffer(data)], [it.buffer(b"\xee")]
            )
            it.device.ring(index)
            written.append(data)
        it.settle()
        assert [len(ring.take_used()) for ring in it.rings] == [1] * 4
    content = image.read_bytes()
    assert [content[512 * (4 * index + 1) :][:1536] for index in range(4)] == written


def test_write_through_when_it_is_asked_for(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with bench(Blk(str(image), writethrough=True)) as it:
        it.start()
        request(it, VIRTIO_BLK_T_OUT, 0, out=bytes(512))
        request(it, VIRTIO_BLK_T_WRITE_ZEROES, 0, out=pack("<QII", 0, 1, 0))
    assert len(synced) == 2


def test_short_reads_and_writes(disk: Bench, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:100]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][:100]], at))
    data = os.urandom(1024)
    assert request(disk, VIRTIO_BLK_T_OUT, 2, out=data)[0] == VIRTIO_BLK_S_OK
    assert request(disk, VIRTIO_BLK_T_IN, 2, room=1024) == (VIRTIO_BLK_S_OK, data)


def test_request_without_status(disk: Bench) -> None:
    disk.rings[0].add([disk.buffer(pack("<IIQ", VIRTIO_BLK_T_FLUSH, 0, 0))], [])
    disk.kick(0)
    assert disk.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_short_header(disk: Bench) -> None:
    status = disk.buffer(b"\xee")
    disk.rings[0].add([disk.buffer(b"short")], [status])
    disk.kick(0)
    assert disk.memory.read(*status)[0] == VIRTIO_BLK_S_IOERR


def test_read_only(image: Path) -> None:
    before = image.read_bytes()
    image.chmod(0o400)
    with bench(Blk(str(image), readonly=True)) as it:
        it.start()
        assert it.device.negotiated(VIRTIO_BLK_F_RO)
        assert not it.device.negotiated(VIRTIO_BLK_F_DISCARD)
        assert request(it, VIRTIO_BLK_T_IN, 0, room=512) == (VIRTIO_BLK_S_OK, before[:512])
        assert request(it, VIRTIO_BLK_T_OUT, 0, out=bytes(512))[0] == VIRTIO_BLK_S_IOERR
        assert request(it, VIRTIO_BLK_T_DISCARD, 0, out=bytes(16))[0] == VIRTIO_BLK_S_UNSUPP
    assert image.read_bytes() == before


def grown(it: Bench, size: int = 0) -> int:
    """Have the disk grow: its sectors then."""
    assert isinstance(it.device, Blk)
    it.device.grow(size)
    return it.device.read_config(0, 8)


def test_growth(disk: Bench, image: Path) -> None:
    """The driver is told, and may use all of it and no more; what was there stays."""
    before, rest = image.read_bytes(), disk.device.config[8:]
    data = os.urandom(512)
    assert request(disk, VIRTIO_BLK_T_OUT, 2 * SECTORS - 1, out=data)[0] == VIRTIO_BLK_S_IOERR
    assert grown(disk, 1024 * SECTORS) == 2 * SECTORS
    assert (disk.device.config[8:], disk.transport.config_interrupts) == (rest, 1)
    assert image.read_bytes() == before + bytes(512 * SECTORS)
    assert request(disk, VIRTIO_BLK_T_OUT, 2 * SECTORS - 1, out=data)[0] == VIRTIO_BLK_S_OK
    assert request(disk, VIRTIO_BLK_T_OUT, 2 * SECTORS, out=data)[0] == VIRTIO_BLK_S_IOERR
    assert image.read_bytes().endswith(data)
    assert grown(disk, 1024 * SECTORS) == 2 * SECTORS  # it has that
    assert disk.transport.config_interrupts == 1
    disk.device.write_status(0)
    disk.start()
    assert disk.device.read_config(0, 8) == 2 * SECTORS


def test_an_image_that_has_grown_by_itself(image: Path) -> None:
    with bench(Blk(str(image), readonly=True)) as it:
        it.start()
        assert grown(it) == SECTORS
        os.truncate(image, 512 * SECTORS + 512)
        assert it.device.read_config(0, 8) == SECTORS  # until somebody says so
        assert grown(it) == SECTORS + 1
        assert request(it, VIRTIO_BLK_T_IN, SECTORS, room=512) == (VIRTIO_BLK_S_OK, bytes(512))
        assert it.transport.config_interrupts == 1


def test_what_does_not_grow(disk: Bench, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(size: int, why: str) -> None:
        with pytest.raises(CannotRun, match=why):
            grown(disk, size)

    refused(512, "has 32K, and no disk becomes smaller")
    refused(513 * SECTORS, "a multiple of 512")
    os.truncate(image, 2048 * SECTORS)
    refused(1024 * SECTORS, r"has 131072 bytes already \(without a size, the guest gets them\)")
    os.truncate(image, 512 * SECTORS + 1)
    refused(0, "not a multiple of 512")
    os.truncate(image, 512)
    refused(0, "has become smaller: 512 bytes")

    def full(*_args: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", full)
    refused(1024 * SECTORS, "cannot be made larger: File too large")
    assert isinstance(disk.device, Blk)
    disk.device.readonly = True
    refused(1024 * SECTORS, "is read-only")
    assert (disk.device.read_config(0, 8), disk.transport.config_interrupts) == (SECTORS, 0)
    disk.device.close()
    disk.device.readonly = False
    refused(1024 * SECTORS, "not in use any more")


def cannot(path: Path, match: str, *, readonly: bool = False) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(CannotRun, match=match) as caught:
        Blk(str(path), readonly=readonly)
    assert "\n" not in str(caught.value)
    assert set(os.listdir("/proc/self/fd")) == before


def test_missing_image(tmp_path: Path) -> None:
    cannot(tmp_path / "none", "No such file")


def test_empty_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    cannot(tmp_path / "empty", "is empty")


def test_odd_size(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(513))
    cannot(tmp_path / "odd", "513 bytes, which is not a multiple of 512")


def test_not_a_file(tmp_path: Path) -> None:
    cannot(tmp_path, "directory")
    cannot(tmp_path, "neither a file nor", readonly=True)
    os.mkfifo(tmp_path / "fifo")
    cannot(tmp_path / "fifo", "neither a file nor|Illegal seek")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_image_without_permission(image: Path) -> None:
    image.chmod(0o400)
    cannot(image, "read-only")


def test_locks(image: Path) -> None:
    writer = Blk(str(image))
    cannot(image, "in use")
    cannot(image, "in use", readonly=True)
    writer.discard()
    readers = [Blk(str(image), readonly=True) for _ in range(2)]
    cannot(image, "in use")
    for reader in readers:
        reader.discard()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.one_of(st.sampled_from([0, 1, 4, 8, 11, 13, 14]), st.integers(0, 0xFFFF_FFFF)),
    sector=st.one_of(st.integers(0, SECTORS + 1), st.integers(0, (1 << 64) - 1)),
    out=st.binary(max_size=64),
    sizes=st.lists(st.integers(0, 1024), max_size=5),
)
def test_random_requests(disk: Bench, kind: int, sector: int, out: bytes, sizes: list[int]) -> None:
    disk.allocator.next = 0x10_0000
    readable = [disk.buffer((pack("<IIQ", kind, 0, sector) + out)[: len(out) + 15])]
    disk.rings[0].add(readable, [disk.buffer(size) for size in sizes], indirect=True)
    disk.kick(0)
    if disk.device.status & VIRTIO_CONFIG_S_NEEDS_RESET:
        assert not sum(sizes)
        disk.device.write_status(0)
        disk.allocator.next = 0x10000
        disk.memory.write(0x10000, bytes(0x10000))
        disk.start()
    else:
        assert len(disk.rings[0].take_used()) == 1
