# SPDX-License-Identifier: GPL-2.0-only
"""A disk with GRUB on it, for SeaBIOS and for OVMF, made of files: no root, no loop device, nothing installed.

One FAT partition holds a kernel, an initramfs and /EFI/BOOT/BOOTX64.EFI; GRUB for a BIOS lies before it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from struct import pack, pack_into

from unikvm.images import packages

SECTOR = 512
START = 2048  # of the partition, in sectors
SIZE = 96 << 20
EFI_PARTITION = 0xEF
MODULES = ("part_msdos", "fat", "linux", "echo")
EFI_NAME = "EFI/BOOT/BOOTX64.EFI"

# boot.img and diskboot.img, GRUB's first two sectors (GRUB include/grub/i386/pc/boot.h)
_CORE_SECTOR_AT = 0x5C
_LIST_AT, _LIST_SEGMENT = 0x1F4, 0x820
_TABLE_AT, _SIGNATURE_AT = 0x1BE, 0x1FE


def make(path: Path, kernel: str, initrd: str, cmdline: str) -> None:
    """Write the disk to `path`; GRUB boots `kernel` at once, and says `GRUB is here` before."""
    grub, work = Path(packages.fetched("grub-common", print)), path.parent
    libraries = Path(packages.fetched("libdevmapper1.02.1", print)) / "lib/x86_64-linux-gnu"
    env = {"LD_LIBRARY_PATH": str(libraries)}
    config = work / "grub.cfg"
    config.write_text(f"echo GRUB is here\nlinux (hd0,msdos1)/vmlinuz {cmdline}\ninitrd (hd0,msdos1)/initrd\nboot\n")
    for package, target, output, more in (
        ("grub-pc-bin", "i386-pc", "core.img", ("biosdisk",)),
        ("grub-efi-amd64-bin", "x86_64-efi", "grub.efi", ()),
    ):
        modules = Path(packages.fetched(package, print)) / "usr/lib/grub" / target
        command = [str(grub / "usr/bin/grub-mkimage"), "-O", target, "-d", str(modules), "-o", str(work / output)]
        subprocess.run([*command, "-p", "/grub", "-c", str(config), *MODULES, *more], env=env, check=True)
    boot = Path(packages.fetched("grub-pc-bin", print)) / "usr/lib/grub/i386-pc/boot.img"
    _write_loader(path, boot.read_bytes(), (work / "core.img").read_bytes())
    _fill(path, {"vmlinuz": kernel, "initrd": initrd, EFI_NAME: str(work / "grub.efi")})


def _write_loader(path: Path, boot: bytes, core: bytes) -> None:
    """The sectors before the partition: the boot sector with the partition table, and GRUB's core behind it."""
    sector = bytearray(boot)
    pack_into("<Q", sector, _CORE_SECTOR_AT, 1)
    entry = pack("<B3xB3xII", 0x80, EFI_PARTITION, START, SIZE // SECTOR - START)
    sector[_TABLE_AT:_SIGNATURE_AT] = entry.ljust(_SIGNATURE_AT - _TABLE_AT, b"\0")
    sector[_SIGNATURE_AT:] = b"\x55\xaa"
    loader = bytearray(core)
    sectors = -(-len(loader) // SECTOR)
    pack_into("<QHH", loader, _LIST_AT, 2, sectors - 1, _LIST_SEGMENT)
    assert 1 + sectors <= START
    with path.open("wb") as disk:
        disk.write(sector + loader)
        disk.truncate(SIZE)


def _fill(path: Path, files: dict[str, str]) -> None:
    """Make the file system, and put the files (name: source) there."""
    mtools = Path(packages.fetched("mtools", print)) / "usr/bin/mtools"
    place = ["-i", f"{path}@@{START * SECTOR}"]

    def run(*command: str) -> None:
        subprocess.run([str(mtools), "-c", command[0], *place, *command[1:]], check=True)

    run("mformat", "-c", "16", "-T", str(SIZE // SECTOR - START))  # few clusters: GRUB follows their chain
    run("mmd", "::EFI", "::EFI/BOOT")
    for name, source in files.items():
        run("mcopy", source, f"::{name}")
