# SPDX-License-Identifier: GPL-2.0-only
"""Decompressors: the Python package where it is there, else the program, else a line that names what to install."""

from __future__ import annotations

import gzip
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from unikvm.errors import CannotRun
from unikvm.images.compression import decompress, name_of
from unit.images.test_vmlinux import PACK, lz4_legacy

DATA = b"all work and no play " * 5000


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without zstandard and lz4."""
    for name in ("zstandard", "lz4", "lz4.block"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("kind", PACK)
def test_a_round_trip(kind: str) -> None:
    packed = PACK[kind](DATA)
    assert name_of(packed) == kind
    assert decompress("file", packed) == DATA


@pytest.mark.parametrize("kind", PACK)
def test_a_short_stream_is_noticed(kind: str) -> None:
    with pytest.raises(CannotRun, match=f"file is damaged: its {kind} data") as error:
        decompress("file", PACK[kind](DATA)[:-9])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "pack"), [("zstd", zstandard.ZstdCompressor().compress), ("lz4", lz4_legacy)])
@pytest.mark.usefixtures("no_packages")
def test_by_the_program(kind: str, pack: Callable[[bytes], bytes]) -> None:
    if not shutil.which(kind):
        pytest.skip(f"{kind} is not installed")
    assert decompress("file", pack(DATA)) == DATA
    with pytest.raises(CannotRun, match=f"damaged: its {kind} data"):
        decompress("file", pack(DATA)[:-9])


@pytest.mark.parametrize("kind", ["zstd", "lz4", "lzo"])
@pytest.mark.usefixtures("no_packages")
def test_nothing_to_unpack_it_with(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PACK[kind](DATA)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = "lzop" if kind == "lzo" else kind
    with pytest.raises(CannotRun, match=f"compressed with {kind}: {program} is missing .install the package {program}"):
        decompress("file", packed)


def test_what_is_not_compressed() -> None:
    assert name_of(b"\x7fELF") == ""
    with pytest.raises(CannotRun, match="does not know: 7f454c46"):
        decompress("file", b"\x7fELF")
    with pytest.raises(CannotRun, match="does not know: nothing"):
        decompress("file", b"")


def test_several_members() -> None:
    assert decompress("file", gzip.compress(b"one ") + gzip.compress(b"two")) == b"one two"
