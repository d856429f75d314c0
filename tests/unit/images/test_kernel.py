# SPDX-License-Identifier: GPL-2.0-only
"""Finding kernels, and one clear line for what is none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.images.kernel import Kernel, find_kernel, kernel_headers
from unit.images.conftest import RELEASE, make_bzimage, make_elf

Save = Callable[[str, bytes], str]


def test_a_bzimage_names_its_release(save: Save) -> None:
    path = save("bzImage", make_bzimage(b"x"))
    assert find_kernel(path) == Kernel(path, RELEASE)


def test_a_vmlinux_names_its_release(save: Save) -> None:
    path = save("vmlinux", make_elf(text=b"Linux version %s\0 ... Linux version 6.1.0-test (x)\0"))
    assert find_kernel(path).release == RELEASE


def test_modules_lie_beside_an_unpacked_kernel(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / f"lib/modules/{RELEASE}").mkdir(parents=True)
    (tmp_path / "boot/vmlinuz").write_bytes(make_bzimage(b"x"))
    assert find_kernel(str(tmp_path / "boot/vmlinuz")).modules == str(tmp_path / f"lib/modules/{RELEASE}")


def test_a_build_tree(tmp_path: Path) -> None:
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    with pytest.raises(CannotRun, match="not a Linux build tree"):
        find_kernel(str(tmp_path))
    image = tmp_path / "arch/x86/boot/bzImage"
    image.write_bytes(make_bzimage(b"x"))
    assert find_kernel(str(tmp_path)) == Kernel(str(image), RELEASE)
    (tmp_path / "modules.order").touch()
    (tmp_path / "Module.symvers").touch()
    kernel = find_kernel(str(tmp_path))
    assert kernel.modules == str(tmp_path)
    assert kernel_headers(kernel) == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"\x7fELF", "not an ELF for x86-64"),
        (b"hello" * 1000, "neither a bzImage nor an ELF"),
        (make_bzimage(b"x")[:0x220], "neither a bzImage nor an ELF"),
        (make_bzimage(b"x")[:0x400], "truncated"),
        (make_bzimage(b"x", flags=0), "32-bit kernel"),
        (make_elf(machine=183), "not an ELF for x86-64"),
        (make_elf(text=b"a payload"), "not a Linux kernel"),
    ],
)
def test_what_is_no_kernel(save: Save, content: bytes, message: str) -> None:
    with pytest.raises(CannotRun, match=message) as error:
        find_kernel(save("image", content))
    assert error.value.outcome == CANNOT_RUN
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["/no/such/bzImage", "no/such", "missing.deb"])
def test_no_such_file(spec: str) -> None:
    with pytest.raises(CannotRun, match="no such kernel"):
        find_kernel(spec)


def test_a_package(tmp_path: Path) -> None:
    """A real .deb, made by dpkg-deb; and a damaged one."""
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "boot").mkdir()
    (root / f"lib/modules/{RELEASE}").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: me <me@here>\nDescription: test\n"
    )
    (root / "boot/vmlinuz-test").write_bytes(make_bzimage(b"x"))
    deb = tmp_path / "linux.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(deb)], check=True, capture_output=True)
    kernel = find_kernel(str(deb))
    assert kernel.release == RELEASE
    assert kernel.modules.endswith(RELEASE)
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(CannotRun, match="not a sound package"):
        find_kernel(str(deb))
