# SPDX-License-Identifier: GPL-2.0-only
"""Linux guests that nobody here built, as a user starts them. Those that take long run with `pytest -m long`."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from struct import pack

import pytest

from payloads.build import CFLAGS, LDFLAGS
from unikvm.images import packages
from unikvm.images.artifacts import LAUNCHER
from unikvm.images.initramfs import Initramfs
from unikvm.images.kernel import find_kernel
from unikvm.images.vmlinux import vmlinux

HERE = Path(__file__).resolve().parent
SECONDS = 200.0
LONG = [
    pytest.param(f"linux-image-{flavour}", marks=pytest.mark.long)
    for flavour in ("amd64", "cloud-amd64", "rt-amd64", "6.12-amd64", "6.12-cloud-amd64")
]
INSTALLER = "usr/lib/debian-installer/images/12/{0}/text/debian-installer/{0}"


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = [LAUNCHER, "run", "--host", "vm", "--timeout", "120", *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)


def installer(architecture: str) -> Path:
    name = f"debian-installer-12-netboot-{architecture}"
    return Path(packages.fetched(name, print)) / INSTALLER.format(architecture)


@pytest.mark.parametrize("name", ["linux-image-6.12-rt-amd64", *LONG])
def test_debians_kernels(name: str) -> None:
    done = run("-k", name, "--", "uname", "-r")
    assert done.returncode == 0, done.stderr
    flavour = name.removeprefix("linux-image-").removeprefix("6.12-")
    assert done.stdout.decode().strip().endswith(f"-{flavour}")


def test_a_32_bit_kernel(tmp_path: Path) -> None:
    """Debian's, from the installer for i386: its bzImage has no other entry."""
    binary, initrd = tmp_path / "init", tmp_path / "initrd"
    subprocess.run(["cc", *CFLAGS, *LDFLAGS, str(HERE / "init32.S"), "-o", str(binary)], check=True)
    archive = Initramfs()
    archive.add_file("/init", binary.read_bytes())
    archive.add_dir("/dev")
    archive.add_node("/dev/console", stat.S_IFCHR | 0o600, 5, 1)
    with initrd.open("wb") as file:
        archive.write(file)
    done = run("--console", "serial", "-k", str(installer("i386") / "linux"), "-i", str(initrd))
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"the 32-bit guest is up" in done.stdout
    assert b"the guest powered off" in done.stderr


def test_a_32_bit_kernel_has_no_use_for_our_init() -> None:
    done = run("-k", str(installer("i386") / "linux"), "--", "true")
    assert done.returncode == 125
    assert b"is a 32-bit kernel, and our init is for x86-64 (give an initramfs of its own" in done.stderr


def test_a_vmlinux_without_a_pvh_note(tmp_path: Path) -> None:
    kernel = find_kernel()
    note, nothing = pack("<III4s", 4, 8, 18, b"Xen\0"), pack("<III4s", 4, 8, 18, b"Nex\0")
    content = Path(vmlinux(kernel.image)).read_bytes()
    assert content.count(note) == 1
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib/modules").mkdir(parents=True)
    (tmp_path / "lib/modules" / kernel.release).symlink_to(kernel.modules)
    image = tmp_path / "boot/vmlinux"
    image.write_bytes(content.replace(note, nothing))
    done = run("-k", str(image), "--", "uname", "-r")
    assert (done.returncode, done.stdout) == (0, f"{kernel.release}\n".encode()), done.stderr


@pytest.mark.long
def test_debians_installer() -> None:
    """To its first question."""
    files = installer("amd64")
    done = run("-m", "512M", "--console", "serial", "-k", str(files / "linux"), "-i", str(files / "initrd.gz"))
    assert b"Entering low memory mode" in done.stdout
