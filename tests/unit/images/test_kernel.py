# SPDX-License-Identifier: GPL-2.0-only
"""Finding kernels, and one clear line for what is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.images import guest
from unikvm.images.kernel import Kernel, find_kernel, kernel_headers
from unikvm.images.modules import canonical, resolve
from unikvm.images.vmlinux import has_pvh_note, vmlinux
from unit.images.conftest import RELEASE, make_bzimage, make_elf, or_skip

Save = Callable[[str, bytes], str]


def test_a_bzimage_names_its_release(save: Save) -> None:
    path = save("bzImage", make_bzimage(b"x"))
    assert find_kernel(path) == Kernel(path, RELEASE)


def test_a_vmlinux_names_its_release(save: Save) -> None:
    path = save("vmlinux", make_elf(text=b"Linux version %s\0 ... Linux version 6.1.0-test (x)\0"))
    assert find_kernel(path).release == RELEASE


@pytest.mark.parametrize("place", ["lib/modules", "usr/lib/modules"])
def test_modules_lie_beside_an_unpacked_kernel(tmp_path: Path, place: str) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / place / RELEASE).mkdir(parents=True)
    (tmp_path / "boot/vmlinuz").write_bytes(make_bzimage(b"x"))
    assert find_kernel(str(tmp_path / "boot/vmlinuz")).modules == str(tmp_path / place / RELEASE)


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
        (b"\x7fELF", "damaged ELF"),
        (make_elf()[:50], "damaged ELF"),
        (make_elf()[:80], "damaged ELF"),
        (make_elf()[:0x110], "truncated: 8 bytes of the kernel are missing"),
        (make_elf(bits=1), "not an ELF for x86-64"),
        (b"hello" * 1000, "neither a bzImage nor an ELF"),
        (make_bzimage(b"x")[:0x220], "neither a bzImage nor an ELF"),
        (make_bzimage(b"x")[:0x400], "truncated"),
        (make_bzimage(b"x" * 99)[:-70], "truncated: 6 bytes of the kernel are missing"),
        (make_bzimage(b"x", flags=0), "32-bit kernel"),
        (make_bzimage(b"x", protocol=0x20B), "too old: boot protocol 2.11"),
        (make_bzimage(b"x", release="../../etc"), "does not name its release"),
        (make_bzimage(b"x", release=""), "does not name its release"),
        (make_elf(machine=183), "not an ELF for x86-64"),
        (make_elf(text=b"a payload"), "not a Linux kernel"),
    ],
)
def test_what_is_no_kernel(save: Save, content: bytes, message: str) -> None:
    with pytest.raises(CannotRun, match=message) as error:
        find_kernel(save("image", content))
    assert error.value.outcome == CANNOT_RUN
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["/no/such/bzImage", "no/such", "missing.deb", "", "/dev/null"])
def test_no_such_file(spec: str) -> None:
    with pytest.raises(CannotRun, match="no such kernel"):
        find_kernel(spec)


def test_the_newer_of_a_trees_images(tmp_path: Path) -> None:
    """After `make vmlinux` the bzImage there is an older kernel's."""
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    image, elf = tmp_path / "arch/x86/boot/bzImage", tmp_path / "vmlinux"
    image.write_bytes(make_bzimage(b"x"))
    elf.write_bytes(make_elf())
    for seconds, newer in enumerate((image, elf, image), 2_000_000_000):
        os.utime(newer, (seconds, seconds))
        assert find_kernel(str(tmp_path)).image == str(newer)


def test_an_image_inside_a_tree_has_the_trees_modules(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    (tmp_path / "arch/x86_64/boot").mkdir(parents=True)
    (tmp_path / "arch/x86/boot/bzImage").write_bytes(make_bzimage(b"x"))
    link = tmp_path / "arch/x86_64/boot/bzImage"
    link.symlink_to("../../x86/boot/bzImage")
    assert find_kernel(str(link), progress=said.append).modules == ""
    assert said == [f"no modules of {RELEASE} are known: there is only what is built into it"]
    (tmp_path / "modules.order").touch()
    assert find_kernel(str(link), progress=said.append).modules == str(tmp_path)
    assert len(said) == 1


def make_package(tmp_path: Path, files: dict[str, bytes]) -> Path:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: me <me@here>\nDescription: test\n"
    )
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    deb = tmp_path / "linux.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(deb)], check=True, capture_output=True)
    return deb


def test_a_package_without_a_kernel(tmp_path: Path, own_cache: Path) -> None:
    deb = make_package(tmp_path, {"etc/motd": b"hello"})
    with pytest.raises(CannotRun, match="has no kernel in it"):
        find_kernel(str(deb))
    assert not list((own_cache / "debs").iterdir())


def test_a_package(tmp_path: Path) -> None:
    """A real .deb, made by dpkg-deb; and a damaged one."""
    deb = make_package(tmp_path, {"boot/vmlinuz-test": make_bzimage(b"x"), f"lib/modules/{RELEASE}/modules.order": b""})
    kernel = find_kernel(str(deb))
    assert kernel.release == RELEASE
    assert kernel.modules.endswith(RELEASE)
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(CannotRun, match="not a sound package"):
        find_kernel(str(deb))


def in_cache(own_cache: Path, release: str) -> None:
    """An unpacked package."""
    boot = own_cache / f"packages/linux-image-{release}/boot"
    boot.mkdir(parents=True)
    (boot / f"vmlinuz-{release}").write_bytes(make_bzimage(b"x", release=release))


@pytest.mark.parametrize(
    ("spec", "release"),
    [
        (None, "6.12.9-cloud-amd64"),
        ("linux-image-cloud-amd64", "6.12.9-cloud-amd64"),
        ("linux-image-6.1-cloud-amd64", "6.1.0-10-cloud-amd64"),
        ("linux-image-amd64", "6.13.0-amd64"),
        ("6.1.0-9-cloud-amd64", "6.1.0-9-cloud-amd64"),
    ],
)
def test_without_a_network_the_cache_has_it(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str | None, release: str
) -> None:
    """The newest of the flavour that is asked for, and that is said; 10 is newer than 9."""
    for name in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.12.9-cloud-amd64", "6.13.0-amd64"):
        in_cache(own_cache, name)
    for program, script in (
        ("apt-get", 'echo "E: Failed to fetch x  Could not resolve" >&2; exit 100'),
        ("apt-cache", 'shift 2; echo $1; echo "  Depends: linux-image-9.9.9-new-amd64"'),
    ):
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []
    assert find_kernel(spec, progress=said.append).release == release
    if spec is None or spec.startswith("linux-"):
        assert any("Could not resolve: going on with" in line for line in said)


def test_no_network_and_nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "E: Failed to fetch x  Could not resolve" >&2; exit 100\n')
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CannotRun, match=r"Could not resolve.*is the network up"):
        find_kernel("6.1.0-9-cloud-amd64")


HELLO = """
#include <linux/module.h>
static int __init hello_init(void) { pr_info("hello\\n"); return 0; }
static void __exit hello_exit(void) {}
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
"""


@pytest.mark.network
@pytest.mark.usefixtures("users_cache")
@pytest.mark.parametrize("spec", ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"])
def test_modules_build_against_fetched_headers(spec: str, tmp_path: Path) -> None:
    """As a user would: plain `make -C HEADERS M=... modules`, with pahole or without."""
    kernel = or_skip(lambda: find_kernel(spec))
    headers = or_skip(lambda: kernel_headers(kernel))
    (tmp_path / "hello.c").write_text(HELLO)
    (tmp_path / "Makefile").write_text("obj-m := hello.o\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "CFLAGS")}
    command = ["make", "-s", "-C", headers, f"M={tmp_path}", "modules"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert f"vermagic={kernel.release} ".encode() in (tmp_path / "hello.ko").read_bytes()


@pytest.mark.network
@pytest.mark.usefixtures("users_cache")
def test_a_real_kernel() -> None:
    """Debian's: its PVH note, its modules, and the guest's among them."""
    kernel = or_skip(find_kernel)
    with open(vmlinux(kernel.image), "rb") as file:
        assert has_pvh_note(file.read())
    paths = resolve(kernel.modules, kernel.release, guest.MODULES, optional=guest.OPTIONAL_MODULES)
    names = [canonical(os.path.basename(path).partition(".")[0]) for path in paths]
    assert names.index("virtio_ring") < names.index("virtio") < names.index("virtio_pci")
    assert {*guest.MODULES, *guest.OPTIONAL_MODULES} <= set(names)
