# SPDX-License-Identifier: GPL-2.0-only
"""SeaBIOS and OVMF as Debian has them boot a disk with GRUB, which boots Debian's kernel: one host VM for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.run import bootdisk
from unikvm.hostvm.host import Exit, HostVm
from unikvm.hostvm.quirks import before_firmware
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.firmware import find_firmware, fresh_copy
from unikvm.images.guest import guest_initramfs
from unikvm.images.kernel import Kernel

SECONDS = 150.0
SYSFS = "/bin/busybox mkdir /sys; /bin/busybox mount -t sysfs s /sys"
CMDLINE = (
    "console=ttyS0 quiet panic=-1 rdinit=/bin/busybox"
    f' -- sh -c "echo the guest is up; {SYSFS}; test -d /sys/firmware/efi && echo by UEFI;'
    " echo CPUs; cd /sys/devices/system/cpu; /bin/busybox cat online possible;"
    ' exec /bin/busybox poweroff -f"'
)
# Until a variable has reached the file; without a disk OVMF goes on to its shell.
WATCH = """
"$1" run --host local -q --timeout 100 --firmware "ovmf,vars=$2" </dev/null >/dev/null & pid=$!
while kill -0 $pid && cmp -s "$2" "$3"; do sleep 1; done
kill $pid; wait $pid; cmp -s "$2" "$3" || echo changed
"""


@pytest.fixture(scope="module")
def disk(kernel: Kernel, share: Path) -> Path:
    """With GRUB; and the firmware in the cache, where the host VM cannot write."""
    bootdisk.make(share / "disk.img", kernel.image, guest_initramfs(kernel, init=init_binary()), CMDLINE)
    for name in ("seabios", "ovmf"):
        find_firmware(name)
    return share / "disk.img"


def boot(host: HostVm, firmware: str, disk: Path, *options: str, uefi: bool) -> Exit:
    before_firmware(host, uefi=uefi)
    argv = [LAUNCHER, "run", "--host", "local", "--timeout", "120", "--firmware", firmware, "-d", str(disk)]
    return host.exec([*argv, "-c", "2,max=3", *options], stdin=b"", timeout=SECONDS)


def test_seabios_boots_grub_boots_linux(host: HostVm, disk: Path) -> None:
    done = boot(host, "seabios", disk, uefi=False)
    text = done.stdout.decode()
    assert done.status == 0, text + done.stderr.decode()
    assert "SeaBIOS (version" in text
    assert "GRUB loading" in text
    assert "the guest is up" in text
    assert "CPUs\r\n0-1\r\n0-2" in text
    assert "by UEFI" not in text
    assert "exit 0: the guest powered off" in done.stderr.decode()


def test_ovmf_boots_grub_boots_linux(host: HostVm, disk: Path) -> None:
    done = boot(host, "ovmf", disk, "--net", "user", uefi=True)  # its driver and PXE do not come before the disk
    text = done.stdout.decode()
    assert done.status == 0, text + done.stderr.decode()
    assert "BdsDxe: starting Boot" in text
    assert "GRUB is here" in text
    assert "the guest is up" in text
    assert "CPUs\r\n0-1\r\n0-2" in text
    assert "by UEFI" in text


def test_ovmf_keeps_its_variables(host: HostVm, disk: Path) -> None:
    fresh, kept_in = find_firmware("ovmf").vars, disk.with_name("vars")
    fresh_copy(fresh, str(kept_in))
    before_firmware(host, uefi=True)
    done = host.exec(["sh", "-c", WATCH, "sh", LAUNCHER, str(kept_in), fresh], timeout=SECONDS)
    assert done.stdout == b"changed\n", done.stderr
    kept, template = kept_in.read_bytes(), Path(fresh).read_bytes()
    assert len(kept) == len(template)
    assert kept[:100] == template[:100]  # the store's headers; what follows are new variables
