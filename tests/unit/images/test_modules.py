# SPDX-License-Identifier: GPL-2.0-only
"""Modules in load order, of real .ko files that gcc makes with nothing but a .modinfo."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from unikvm.errors import CannotRun
from unikvm.images.modules import decompressed, resolve

PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def make_module(folder: Path, name: str, depends: str = "", softdep: str = "", alias: str = "") -> bytes:
    info = f"depends={depends}\\0name={name}\\0"
    info += "".join(f"{key}={value}\\0" for key, value in (("softdep", softdep), ("alias", alias)) if value)
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
    (modules / "kernel/a.ko").unlink()
    (modules / f"kernel/a.ko{suffix}").write_bytes(PACKS[suffix](data))
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


def test_wishes_of_each_other_are_no_cycle(modules: Path) -> None:
    make_module(modules / "kernel", "a", softdep="pre: b")
    make_module(modules / "kernel", "b", softdep="pre: a")
    assert names(resolve(str(modules), "6.1", ["a"])) == ["b", "a"]


def test_a_wish_may_be_an_alias(modules: Path) -> None:
    """As crypto-crc32c; `post:` and what is built in are left out, and so is what the kernel does not have."""
    (modules / "modules.builtin.modinfo").write_bytes(b"kernel_part.alias=crypto-sha1\0kernel_part.license=GPL\0")
    make_module(modules / "kernel", "fs", softdep="post: late pre: crypto-crc32c crypto-sha1 crypto-none")
    make_module(modules / "kernel", "crc", alias="crypto-crc32c")
    make_module(modules / "kernel", "crypto_sha1")
    make_module(modules / "kernel", "late")
    (modules / "kernel/crypto_sha1.ko").unlink()
    (modules / "kernel/broken.ko").write_bytes(b"no module")
    for _ in range(2):
        assert names(resolve(str(modules), "6.1", ["fs"])) == ["crc", "fs"]


def test_what_may_be_missing(modules: Path) -> None:
    make_module(modules / "kernel", "a")
    make_module(modules / "kernel", "half", "a,gone")
    make_module(modules / "kernel", "c")
    said: list[str] = []
    paths = resolve(str(modules), "6.1", ["a"], optional=["gone", "half", "c"], say=said.append)
    assert names(paths) == ["a", "c"]
    assert said == [
        "the kernel 6.1 has no module gone and not built in either: going on without",
        "the kernel 6.1 has no module gone, which half needs, and not built in either: going on without",
    ]


def test_a_module_that_is_built_again_is_read_again(modules: Path) -> None:
    make_module(modules / "kernel", "a")
    make_module(modules / "kernel", "b")
    assert names(resolve(str(modules), "6.1", ["a"])) == ["a"]
    make_module(modules / "kernel", "a", "b")
    assert names(resolve(str(modules), "6.1", ["a"])) == ["b", "a"]


def test_updates_come_first(modules: Path) -> None:
    for folder in ("a-first", "updates", "z-last"):
        (modules / folder).mkdir()
        make_module(modules / folder, "driver")
    assert resolve(str(modules), "6.1", ["driver"]) == [str(modules / "updates/driver.ko")]


@pytest.mark.parametrize("order", ["{}.ko", "kernel/{}.ko", "{}.o"])
def test_a_build_tree_lists_its_modules(tmp_path: Path, order: str) -> None:
    """As kernels before 5.4, up to 6.1 and newer ones write modules.order; what it does not name is a left-over."""
    (tmp_path / "drivers").mkdir()
    (tmp_path / "kernel").mkdir()
    (tmp_path / "Makefile").touch()
    make_module(tmp_path / "drivers", "a", "b")
    make_module(tmp_path / "kernel", "b")
    make_module(tmp_path / "kernel", "left_over")
    lines = [order.format("drivers/a"), order.format("kernel/b")]
    (tmp_path / "modules.order").write_text("".join(f"{line}\n" for line in lines))
    assert resolve(str(tmp_path), "6.1", ["a"]) == [str(tmp_path / "kernel/b.ko"), str(tmp_path / "drivers/a.ko")]
    with pytest.raises(CannotRun, match="no module left_over"):
        resolve(str(tmp_path), "6.1", ["left_over"])


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_an_unsound_module(modules: Path, suffix: str) -> None:
    """No module at all; and each length and each flipped byte of one: CannotRun, and nothing else."""
    whole = make_module(modules / "kernel", "a")
    (modules / "kernel/a.ko").unlink()
    path = modules / f"kernel/a.ko{suffix}"
    path.write_bytes(b"no module")
    unsound = "not a sound module|is damaged|a compression that"
    with pytest.raises(CannotRun, match=unsound):
        resolve(str(modules), "6.1", ["a"])
    packed = PACKS[suffix](whole)
    for length in range(0, len(packed), 7):
        path.write_bytes(packed[:length])
        with pytest.raises(CannotRun, match=unsound):
            resolve(str(modules), "6.1", ["a"])
    for at in range(0, len(packed), 5):
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :])
        with contextlib.suppress(CannotRun):  # some flips change nothing that is read
            resolve(str(modules), "6.1", ["a"])
