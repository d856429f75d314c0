# SPDX-License-Identifier: GPL-2.0-only
"""Kept hosts: the sparse copy, damage, the cache's order. Saving and resuming are tests/stack's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from unikvm.hostvm import snapshot
from unikvm.hostvm.launch import new_ram
from unikvm.hostvm.snapshot import Snapshot, SnapshotError

SIZE = 64 << 20
PAGE = 4096


def keep(path: Path) -> Snapshot:
    """A kept host of two pages of data."""
    path.mkdir(parents=True)
    with open(path / "ram", "wb") as ram:
        os.truncate(ram.fileno(), SIZE)
        os.pwrite(ram.fileno(), b"a" * PAGE, 0)
        os.pwrite(ram.fileno(), b"z" * PAGE, SIZE - PAGE)
    (path / "state").write_bytes(b"state")
    source = os.open(path / "ram", os.O_RDONLY)
    target = new_ram(SIZE)
    copied = snapshot.copy_sparse(source, target)
    os.close(source)
    os.close(target)
    (path / "meta").write_text(json.dumps({"data": copied, "state": hashlib.sha256(b"state").hexdigest()}))
    return Snapshot(str(path))


def test_the_copy_is_exact_and_sparse(tmp_path: Path) -> None:
    kept = keep(tmp_path / "k")
    ram = new_ram(SIZE)
    kept.load_ram(ram)
    assert os.pread(ram, PAGE, 0) == b"a" * PAGE
    assert os.pread(ram, PAGE, SIZE - PAGE) == b"z" * PAGE
    assert os.pread(ram, PAGE, SIZE // 2) == bytes(PAGE)
    assert os.fstat(ram).st_blocks * 512 < SIZE // 8
    os.close(ram)


def test_each_run_has_its_own_copy(tmp_path: Path) -> None:
    kept = keep(tmp_path / "k")
    for _ in range(2):
        ram = new_ram(SIZE)
        kept.load_ram(ram)
        assert os.pread(ram, 1, 0) == b"a"
        os.pwrite(ram, b"dirty", 0)
        os.close(ram)


@pytest.mark.parametrize("damage", ["short", "hole", "state", "meta", "no ram", "list"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    kept = keep(tmp_path / "k")
    path = tmp_path / "k"
    if damage == "short":
        os.truncate(path / "ram", SIZE // 2)
    elif damage == "hole":
        os.truncate(path / "ram", SIZE - PAGE)
        os.truncate(path / "ram", SIZE)
    elif damage == "state":
        (path / "state").write_bytes(b"other")
    elif damage == "meta":
        (path / "meta").write_text("{")
    elif damage == "list":
        (path / "meta").write_text("[]")
    else:
        (path / "ram").unlink()
    ram = new_ram(SIZE)
    with pytest.raises(SnapshotError):
        kept.load_ram(ram)
    os.close(ram)
    kept.discard()
    assert not kept.exists()


def test_the_key_tells_everything_apart(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_text("one")
    first = snapshot.key(["a", snapshot.identity(str(image))])
    image.write_text("another")
    assert len({first, snapshot.key(["a", snapshot.identity(str(image))]), snapshot.key(["a"]), snapshot.key([])}) == 4
    assert snapshot.key(["ab", "c"]) != snapshot.key(["a", "bc"])
    assert snapshot.identity(str(tmp_path / "nothing")).endswith("missing")


def test_collection(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the kernel's largest pid
    for name in (f".half.{dead}", f".mine.{os.getpid()}", ".odd"):
        (tmp_path / name).mkdir()
    for number in range(7):
        (tmp_path / f"kept{number}").mkdir()
        os.utime(tmp_path / f"kept{number}", (number, number))
    snapshot.collect(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [f".mine.{os.getpid()}", "kept3", "kept4", "kept5", "kept6"]
    snapshot.collect(str(tmp_path / "nothing"))


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert snapshot.cache_dir() == "/c/unikvm/hosts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert snapshot.cache_dir() == "/h/.cache/unikvm/hosts"
