# SPDX-License-Identifier: GPL-2.0-only
"""A tiny tree in the layout of kvm-unit-tests, of a payload of our own: the real suite is in no package registry."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from payloads.build import build

UNITTESTS = """\
# [unittest_name]
# file = <name>.flat
[plain]
file = unittest.flat

[register]
file = unittest.flat
extra_params = -append 'register'
groups = testdev

[smp]
file = unittest.flat
smp = 2
extra_params = -cpu max --append "cpus"

[memory]
file = unittest.flat
qemu_params = -m 300
test_args = "memory mib=290"
timeout = 90s

[fails]
file = unittest.flat
extra_params = -append fail

[crashes]
file = unittest.flat
extra_params = -append crash

[skips]
file = unittest.flat
extra_params = -append skip

[unmet]
file = unittest.flat
check = /sys/module/kvm/parameters/ignore_msrs=Y

[other-processor]
file = unittest.flat
extra_params = -cpu Opteron_G1,vendor=AuthenticAMD

[other-arch]
file = unittest.flat
arch = i386

[by-hand]
file = unittest.flat
extra_params = -append hang
groups = nodefault
"""


def make(folder: Path) -> str:
    """Build the tree in `folder`; its path."""
    name = "unittest-multiboot.elf"
    (folder / "x86").mkdir(parents=True)
    built = os.environ.get("UNIKVM_PAYLOADS")
    if built and (Path(built) / name).exists():
        shutil.copy(Path(built) / name, folder / name)
    else:
        build(folder / name)
    (folder / name).rename(folder / "x86/unittest.flat")
    (folder / "x86/unittests.cfg").write_text(UNITTESTS, encoding="utf-8")
    return str(folder)
