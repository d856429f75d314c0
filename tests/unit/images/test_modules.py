# SPDX-License-Identifier: GPL-2.0-only
"""Modules in load order, of real .ko files that gcc makes with nothing but a .modinfo."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from unikvm.errors import CannotRun
from unikvm.images.modules import decompressed, resolve


def make_module(folder: Path, name: str, depends: str = "", softdep: str = "") -> bytes:
    info = f"depends={depends}\\0" + (f"softdep={softdep}\\0" if softdep else "") + f"name={name}\\0"
    source = f'const char info[] __attribute__((section(".modinfo"))) = "{info}";\n'
    path = folder / f"{name}.ko"
    command = ["gcc", "-c", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return path.read_bytes()


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/built-in.ko\n")
    return folder


def names(paths: list[str]) -> list[str]:
    return [Path(path).name.partition(".")[0] for path in paths]


def test_dependencies_come_first(modules: Path) -> None:
    make_module(modules / "kernel", "ring")
    make_module(modules / "kernel", "virtio", "ring,built_in")
    make_module(modules / "kernel", "virtio-net", "virtio,ring", softdep="pre: fail-over post: late")
    make_module(modules / "kernel", "fail_over")
    paths = resolve(str(modules), "6.1", ["virtio_net", "virtio"])
    assert names(paths) == ["fail_over", "ring", "virtio", "virtio-net"]
    assert resolve(str(modules), "6.1", ["virtio_net", "virtio"]) == paths


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_compressed_modules(modules: Path, suffix: str) -> None:
    data = make_module(modules / "kernel", "a", "b")
    packs: dict[str, Callable[[bytes], bytes]] = {
        ".xz": lzma.compress,
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    (modules / "kernel/a.ko").unlink()
    (modules / f"kernel/a.ko{suffix}").write_bytes(packs[suffix](data))
    make_module(modules / "kernel", "b")
    paths = resolve(str(modules), "6.1", ["a"])
    assert names(paths) == ["b", "a"]
    assert decompressed(paths[1]) == data


def test_a_missing_module_says_who_needs_it(modules: Path) -> None:
    make_module(modules / "kernel", "a", "gone")
    with pytest.raises(CannotRun, match="no module gone, which a needs"):
        resolve(str(modules), "6.1", ["a"])
    with pytest.raises(CannotRun, match="no module nothing"):
        resolve(str(modules), "6.1", ["nothing"])
    with pytest.raises(CannotRun, match="no modules are known"):
        resolve("", "6.1", ["a"])


def test_a_cycle_is_named(modules: Path) -> None:
    make_module(modules / "kernel", "a", "b")
    make_module(modules / "kernel", "b", "a")
    with pytest.raises(CannotRun, match="a -> b -> a"):
        resolve(str(modules), "6.1", ["a"])


def test_an_unsound_module(modules: Path) -> None:
    (modules / "kernel/a.ko").write_bytes(b"no module")
    with pytest.raises(CannotRun, match="not a sound module"):
        resolve(str(modules), "6.1", ["a"])
