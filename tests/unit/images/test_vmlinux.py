# SPDX-License-Identifier: GPL-2.0-only
"""Unpacking the kernel of a bzImage, with each compression that kernels use."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard

from unikvm.errors import CannotRun
from unikvm.images.vmlinux import has_pvh_note, vmlinux
from unit.images.conftest import make_bzimage, make_elf

Save = Callable[[str, bytes], str]
ELF = make_elf(text=b"kernel " * 5000)
SIZE = len(ELF).to_bytes(4, "little")  # the kernel's build appends it


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
    path = save("bzImage", make_bzimage(PACK[kind](ELF) + SIZE))
    unpacked = vmlinux(path)
    assert Path(unpacked).read_bytes() == ELF
    assert Path(unpacked).is_relative_to(own_cache)
    before = Path(unpacked).stat()
    assert vmlinux(path) == unpacked
    assert Path(unpacked).stat() == before


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
        (make_bzimage(b"x", length=1 << 20), "truncated"),
        (make_bzimage(b"x")[:100], "not a bzImage"),
    ],
)
def test_damage_is_one_line(save: Save, image: bytes, message: str, own_cache: Path) -> None:
    with pytest.raises(CannotRun, match=message) as error:
        vmlinux(save("bzImage", image))
    assert "\n" not in str(error.value)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_pvh_note() -> None:
    assert has_pvh_note(ELF)
    assert not has_pvh_note(make_elf(pvh=False))
