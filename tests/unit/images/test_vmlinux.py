# SPDX-License-Identifier: GPL-2.0-only
"""Unpacking the kernel of a bzImage, with each compression that kernels use."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from unikvm.errors import CannotRun
from unikvm.images.vmlinux import KEPT, has_pvh_note, vmlinux
from unit.images.conftest import make_bzimage, make_elf

Save = Callable[[str, bytes], str]
ELF = make_elf(text=b"kernel " * 5000)
SIZE = len(ELF).to_bytes(4, "little")


def lz4_legacy(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[at : at + 4096], store_size=False) for at in range(0, len(data), 4096)]
    return b"\x02\x21\x4c\x18" + b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


def lzo(data: bytes) -> bytes:
    if not shutil.which("lzop"):
        pytest.skip("lzop is not installed")
    return subprocess.run(["lzop", "-9"], input=data, capture_output=True, check=True).stdout


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4_legacy,
    "lzo": lzo,
}


@pytest.mark.parametrize("kind", PACK)
def test_unpacks_once(save: Save, kind: str, own_cache: Path) -> None:
    appended = b"" if kind == "gzip" else SIZE  # gzip's format ends with it; the kernel's build appends it to others
    path = save("bzImage", make_bzimage(PACK[kind](ELF) + appended))
    unpacked = vmlinux(path)
    assert Path(unpacked).read_bytes() == ELF
    assert Path(unpacked).is_relative_to(own_cache)
    before = Path(unpacked).stat().st_ino
    assert vmlinux(path) == unpacked
    assert Path(unpacked).stat().st_ino == before


def test_a_kernel_without_a_pvh_note_is_booted_as_it_is(save: Save) -> None:
    path = save("bzImage", make_bzimage(gzip.compress(make_elf(pvh=False))))
    assert vmlinux(path) == path
    assert vmlinux(path) == path  # from the cache's memory


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (make_bzimage(gzip.compress(ELF)[:60]), "damaged"),
        (make_bzimage(gzip.compress(b"no ELF in here")), "there is no ELF"),
        (make_bzimage(b"\x99\x98\x97\x96\x95\x94"), "does not know"),
        (make_bzimage(lz4_legacy(ELF)[:300]), "damaged"),
        (make_bzimage(lz4_legacy(ELF[: 2 * 4096]) + SIZE), "damaged.*not the size"),
        (make_bzimage(zstandard.ZstdCompressor().compress(ELF)[:-9]), "damaged.*ends early"),
        (make_bzimage(lzma.compress(ELF)[:-20]), "damaged.*xz data"),
        (make_bzimage(bz2.compress(ELF)[:-20]), "damaged.*bzip2 data"),
        (make_bzimage(b"x", length=1 << 20), "truncated"),
        (make_bzimage(b"x")[:100], "not a bzImage"),
    ],
)
def test_damage_is_one_line(save: Save, image: bytes, message: str, own_cache: Path) -> None:
    with pytest.raises(CannotRun, match=message) as error:
        vmlinux(save("bzImage", image))
    assert "\n" not in str(error.value)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_damaged_lzo(save: Save) -> None:
    packed = lzo(ELF)
    with pytest.raises(CannotRun, match="damaged"):
        vmlinux(save("bzImage", make_bzimage(packed[: len(packed) // 2] + SIZE)))


def test_an_image_that_is_not_there() -> None:
    with pytest.raises(CannotRun, match="cannot read /no/such: No such file"):
        vmlinux("/no/such")


def test_the_last_kernels_are_kept(save: Save, own_cache: Path) -> None:
    """A developer's cache does not grow with each build, and the kernel in use stays."""
    first = save("first", make_bzimage(gzip.compress(ELF)))
    for number in range(KEPT + 3):
        vmlinux(save("bzImage", make_bzimage(gzip.compress(ELF + bytes([number])))))
        os.utime(vmlinux(first), (2_000_000_000, 2_000_000_000))
    assert len([path for path in (own_cache / "vmlinux").iterdir() if path.is_file()]) == KEPT
    assert Path(vmlinux(first)).read_bytes() == ELF


def test_pvh_note() -> None:
    assert has_pvh_note(ELF)
    assert not has_pvh_note(make_elf(pvh=False))
    assert not has_pvh_note(ELF[:40])


@given(st.lists(st.tuples(st.integers(0, 0x120), st.integers(0, 255)), min_size=1, max_size=9), st.integers(0, 0x140))
def test_any_damage_is_survived(damage: list[tuple[int, int]], length: int) -> None:
    elf = bytearray(make_elf())
    for at, byte in damage:
        elf[at % len(elf)] = byte
    has_pvh_note(bytes(elf[:length]))
