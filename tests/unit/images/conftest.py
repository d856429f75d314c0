# SPDX-License-Identifier: GPL-2.0-only
"""A cache of the test's own, and images made by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack_into
from typing import TypeVar

import pytest

from unikvm.errors import CannotRun
from unikvm.images.kernel import HEADER_END, KERNEL_VERSION_AT, PAYLOAD_AT, SETUP_SECTS_AT, XLOADFLAGS_AT

RELEASE = "6.1.0-test"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/unikvm"


@pytest.fixture
def users_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache after all: for what is large, and is there when the rest of the tests has run."""
    monkeypatch.undo()


T = TypeVar("T")


def or_skip(fetch: Callable[[], T]) -> T:
    """What `fetch` fetches; the test is skipped where there is no network to fetch it from."""
    try:
        return fetch()
    except CannotRun as error:
        if "network" in error.hint or "no apt here" in error.message:
            pytest.skip(str(error))
        raise


def make_elf(
    *, machine: int = 62, bits: int = 2, pvh: bool = True, text: bytes = b"Linux version 6.1.0-test (x)\0"
) -> bytes:
    """A 64-bit ELF with one note segment and some text behind it."""
    note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0" + (0x100_0000).to_bytes(8, "little")
    if not pvh:
        note = b"\x04\0\0\0\x08\0\0\0\x01\0\0\0GNU\0" + bytes(8)
    elf = bytearray(0x100)
    elf[0:7] = b"\x7fELF" + bytes((bits, 1, 1))
    pack_into("<HHIQQQIHHHHHH", elf, 16, 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    pack_into("<IIQQQQQQ", elf, 64, 4, 0, 0x100, 0, 0, len(note), len(note), 4)
    return bytes(elf) + note + text


def make_bzimage(
    packed: bytes, *, flags: int = 1, length: int | None = None, protocol: int = 0x20F, release: str = RELEASE
) -> bytes:
    """A bzImage whose setup is two sectors and whose compressed kernel is `packed`."""
    head = bytearray(3 * 512)
    head[SETUP_SECTS_AT] = 2
    head[0x202:0x206] = b"HdrS"
    pack_into("<H", head, 0x206, protocol)
    pack_into("<H", head, KERNEL_VERSION_AT, HEADER_END)
    head[0x200 + HEADER_END : 0x200 + HEADER_END + 50] = f"{release} (me@here)".encode().ljust(50, b"\0")
    pack_into("<H", head, XLOADFLAGS_AT, flags)
    pack_into("<II", head, PAYLOAD_AT, 16, len(packed) if length is None else length)
    return bytes(head) + bytes(16) + packed + bytes(64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield small
    subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file, gives its path."""

    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write
