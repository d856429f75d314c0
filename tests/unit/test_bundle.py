# SPDX-License-Identifier: GPL-2.0-only
"""The bytecode of a package in one file: as good as its sources, and never better."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

from unikvm import bundle

SOURCES = {
    "__init__.py": "",
    "leaf.py": "value = 1\n",
    "room/__init__.py": "room = 2\n",
    "room/inner.py": "value = 3\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `bundled`, which can be imported."""
    path = tmp_path / "bundled"
    for name, text in SOURCES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield path
    for module in [name for name in sys.modules if name.partition(".")[0] == "bundled"]:
        del sys.modules[module]


def bundled(package: Path, path: Path) -> list[bundle.Bundle]:
    """The file is used: whoever finds modules by it."""
    bundle.use(str(path), str(package))
    return [finder for finder in sys.meta_path if isinstance(finder, bundle.Bundle)]


def test_modules_come_from_the_file(package: Path, tmp_path: Path) -> None:
    bundle.write(str(tmp_path / "file"), str(package))
    assert len(bundled(package, tmp_path / "file")) == 1
    for name, value in (("bundled.leaf", 1), ("bundled.room.inner", 3)):
        module = importlib.import_module(name)
        assert module.value == value
        assert module.__spec__ is not None
        assert isinstance(module.__spec__.loader, bundle.Bundle)
        assert module.__file__ == str(package.parent / name.replace(".", "/")) + ".py"
    assert sys.modules["bundled.room"].room == 2
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bundled.none")


@pytest.mark.parametrize("how", ["size", "time", "gone"])
def test_a_source_that_has_changed(package: Path, tmp_path: Path, how: str) -> None:
    bundle.write(str(tmp_path / "file"), str(package))
    bundled(package, tmp_path / "file")
    leaf = package / "leaf.py"
    before = leaf.stat().st_mtime_ns
    leaf.write_text("value = 1111\n" if how == "size" else "value = 4\n")
    os.utime(leaf, ns=(before, before + (2_000_000_000 if how == "time" else 0)))
    if how == "gone":
        leaf.unlink()
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("bundled.leaf")
    else:
        assert importlib.import_module("bundled.leaf").value == (1111 if how == "size" else 4)


@pytest.mark.parametrize("content", [b"", b"short", bytes(100), MAGIC_NUMBER, MAGIC_NUMBER + bytes(60)])
def test_a_file_of_somebody_else(package: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert not bundled(package, tmp_path / "file")
    assert not bundled(package, tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_tree_that_was_moved(package: Path, tmp_path: Path) -> None:
    bundle.write(str(tmp_path / "file"), str(package))
    assert not bundled(package.parent / "elsewhere", tmp_path / "file")


def test_it_is_written_once(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        bundle.write(str(path), str(package))
        os.utime(path, (1, 1))
    assert path.stat().st_mtime == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundled", "file"]
