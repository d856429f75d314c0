# SPDX-License-Identifier: GPL-2.0-only
"""Images: what is read and written is the same whatever way it takes, on files and on block devices."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.errors import CannotRun
from unikvm.sys import diskfile
from unikvm.sys.diskfile import DiskFile

SIZE = 1 << 17
PREADV, PWRITEV = os.preadv, os.pwritev
ROOT = os.geteuid() == 0


@contextmanager
def opened(path: Path | str, *, readonly: bool = False, direct: bool = False) -> Iterator[DiskFile]:
    file = DiskFile(str(path), readonly=readonly, direct=direct)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    done = subprocess.run(
        ["losetup", "--find", "--show", *options, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


def read(file: DiskFile, offset: int, sizes: list[int]) -> bytes:
    views = [memoryview(bytearray(size + 1))[1:] for size in sizes]  # aligned to nothing
    parts = list(views)
    while parts:
        count = file.read(parts, offset)
        if not count:
            break
        offset += count
        parts = rest(parts, count)
    return b"".join(views)


def write(file: DiskFile, offset: int, data: bytes | bytearray, sizes: list[int]) -> None:
    parts, at = [], 0
    for size in sizes:
        parts.append(memoryview(data)[at : at + size])
        at += size
    while parts:
        count = file.write(parts, offset)
        offset += count
        parts = rest(parts, count)


def rest(parts: list[memoryview], count: int) -> list[memoryview]:
    parts = list(parts)
    while parts and count >= len(parts[0]):
        count -= len(parts.pop(0))
    if parts and count:
        parts[0] = parts[0][count:]
    return parts


def be_strict(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Have reads and writes refused that are not aligned, as some file systems do and others do not."""

    def strict(call: Callable[[int, list[memoryview], int], int]) -> Callable[[int, list[memoryview], int], int]:
        def checked(fd: int, views: list[memoryview], offset: int) -> int:
            for view in views:
                if len(view) % block or ctypes.addressof(ctypes.c_char.from_buffer(view)) % block:
                    raise OSError(errno.EINVAL, "not aligned")
            if offset % block:
                raise OSError(errno.EINVAL, "not aligned")
            return call(fd, views, offset)

        return checked

    monkeypatch.setattr(os, "preadv", strict(PREADV))
    monkeypatch.setattr(os, "pwritev", strict(PWRITEV))


@pytest.mark.parametrize("bounce", [8192, 1 << 20])
@pytest.mark.parametrize("block", [512, 4096])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sector=st.integers(0, 200), sizes=st.lists(st.sampled_from([1, 511, 512, 1024, 4096, 5000]), max_size=6))
def test_direct_is_as_buffered(
    image: Path, monkeypatch: pytest.MonkeyPatch, bounce: int, block: int, sector: int, sizes: list[int]
) -> None:
    """Whatever a guest's buffers look like, also where they are larger than the buffer between."""
    monkeypatch.setattr(diskfile, "BOUNCE", bounce)
    be_strict(monkeypatch, block)
    length = sum(sizes)
    length -= length % 512
    sizes = [*sizes, -sum(sizes) % 512]
    sizes = [size for size in sizes if size]
    offset = min(512 * sector, SIZE - sum(sizes))
    before = image.read_bytes()
    with opened(image, direct=True) as file:
        assert file.block >= block
        assert read(file, offset, sizes) == before[offset : offset + sum(sizes)]
        data = bytearray(os.urandom(sum(sizes)))
        write(file, offset, data, sizes)
    assert image.read_bytes() == before[:offset] + data + before[offset + len(data) :]


def test_a_direct_image_that_has_become_shorter(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_strict(monkeypatch, 4096)
    with opened(image, direct=True) as file:
        os.truncate(image, 4096)
        assert read(file, 4096 + 512, [512, 3]) == bytes(515)
        assert file.read([memoryview(bytearray(4097))[1:]], 8192) == 0
        with pytest.raises(OSError, match="shorter"):
            file.write([memoryview(bytearray(513))[1:]], 8192 + 512)


def test_direct_where_it_cannot_be(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opens(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CannotRun, match="no direct I/O"):
        DiskFile(str(image), direct=True)


@pytest.mark.parametrize("direct", [False, True])
def test_on_a_tmpfs(direct: bool) -> None:
    """Which has direct I/O since Linux 6.6."""
    path = Path(f"/dev/shm/unikvm-test-{os.getpid()}")
    path.write_bytes(os.urandom(SIZE))
    try:
        os.close(os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0)))
        with opened(path, direct=direct) as file:
            check_clearing(file)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        with pytest.raises(CannotRun, match="no direct I/O"):
            DiskFile(str(path), direct=True)
    finally:
        path.unlink()


def check_clearing(file: DiskFile) -> None:
    write(file, 0, bytes([7]) * SIZE, [SIZE])
    file.discard(0, 8192)
    file.zero(8192, 4096, unmap=False)
    file.zero(16384, 4096, unmap=True)
    file.zero(32768 + 512, 1024, unmap=False)
    file.zero(49152 + 512, 1024, unmap=True)
    file.flush()
    expected = bytearray([7]) * SIZE
    for start, size in ((8192, 4096), (16384, 4096), (32768 + 512, 1024), (49152 + 512, 1024)):
        expected[start : start + size] = bytes(size)
    assert read(file, 8192, [SIZE - 8192]) == expected[8192:]


@pytest.mark.skipif(not ROOT, reason="takes root to make a loop device")
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("sector", [512, 4096])
def test_on_a_block_device(image: Path, direct: bool, sector: int) -> None:
    with loop_device(image, "--sector-size", str(sector)) as device, opened(device, direct=direct) as file:
        assert (file.size, file.is_device, file.logical) == (SIZE, True, sector)
        check_clearing(file)
        file.discard(512, 512)  # smaller than a block of it, perhaps
        with pytest.raises(CannotRun, match="in use"):
            DiskFile(device)


@pytest.mark.skipif(not ROOT, reason="takes root to make a loop device")
def test_a_block_device_frees_what_is_discarded(image: Path) -> None:
    with loop_device(image) as device, opened(device) as file:
        file.flush()
        before = image.stat().st_blocks
        file.discard(0, SIZE // 2)
        file.flush()
        assert image.stat().st_blocks <= before // 2


@pytest.mark.skipif(not ROOT, reason="takes root to make a loop device")
def test_a_read_only_block_device(image: Path) -> None:
    with loop_device(image, "--read-only") as device:
        with pytest.raises(CannotRun, match="read-only"):
            DiskFile(device)
        with opened(device, readonly=True) as file:
            assert read(file, 0, [512]) == image.read_bytes()[:512]
