# SPDX-License-Identifier: GPL-2.0-only
"""A cache of the test's own, and images made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import pack_into

import pytest

from unikvm.images.kernel import HEADER_END, KERNEL_VERSION_AT, XLOADFLAGS_AT
from unikvm.images.vmlinux import PAYLOAD_AT, SETUP_SECTS_AT

RELEASE = "6.1.0-test"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/unikvm"


def make_elf(*, machine: int = 62, pvh: bool = True, text: bytes = b"Linux version 6.1.0-test (x)\0") -> bytes:
    """A 64-bit ELF with one note segment and some text behind it."""
    note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0" + (0x100_0000).to_bytes(8, "little")
    if not pvh:
        note = b"\x04\0\0\0\x08\0\0\0\x01\0\0\0GNU\0" + bytes(8)
    elf = bytearray(0x100)
    elf[0:7] = b"\x7fELF\x02\x01\x01"
    pack_into("<HHIQQQIHHHHHH", elf, 16, 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    pack_into("<IIQQQQQQ", elf, 64, 4, 0, 0x100, 0, 0, len(note), len(note), 4)
    return bytes(elf) + note + text


def make_bzimage(packed: bytes, *, flags: int = 1, length: int | None = None) -> bytes:
    """A bzImage whose setup is two sectors and whose compressed kernel is `packed`."""
    head = bytearray(3 * 512)
    head[SETUP_SECTS_AT] = 2
    head[0x202:0x206] = b"HdrS"
    pack_into("<H", head, 0x206, 0x20F)
    pack_into("<H", head, KERNEL_VERSION_AT, HEADER_END)
    head[0x200 + HEADER_END : 0x200 + HEADER_END + 30] = f"{RELEASE} (me@here)".encode().ljust(30, b"\0")
    pack_into("<H", head, XLOADFLAGS_AT, flags)
    pack_into("<II", head, PAYLOAD_AT, 16, len(packed) if length is None else length)
    return bytes(head) + bytes(16) + packed + bytes(64)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file, gives its path."""

    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write
