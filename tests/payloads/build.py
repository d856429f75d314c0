#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Builds a payload. Used by meson (`build.py OUTPUT SOURCE…`) and by the tests where nothing was built yet.

A payload is freestanding 32-bit code whatever the compiler's default is, so the flags are the same everywhere and
are kept here alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# fmt: off
CFLAGS = [
    "-m32", "-march=i686", "-std=gnu11", "-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
    "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only", "-Wall", "-Wextra", "-Werror",
]
LDFLAGS = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
# fmt: on

PLAIN = ("hello", "bootinfo", "count", "storm", "mmio", "smp", "ending", "timer", "echo", "disk", "straddle")
# The multiboot twins are the same programs without the PVH note, which would win.
PAYLOADS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{f"{name}.elf": (("start.S", "payload.c", f"{name}.c"), ()) for name in PLAIN},
    **{f"{name}.elf": (("start.S", "payload.c", "virtio.c", f"{name}.c"), ()) for name in ("growth", "writer")},
    **{
        f"{name}.elf": (("start.S", "payload.c", "virtio.c", "witness.c", f"{name}.c"), ())
        for name in ("hostile", "hang")
    },
    **{
        f"{name}-multiboot.elf": (("start.S", "payload.c", f"{name}.c"), ("-DNO_PVH",))
        for name in ("hello", "bootinfo", "unittest")
    },
}
FLAT = {"flat.bin": ("flat.S", 0x7C00), "flash.bin": ("flash.S", 0)}


def build(output: Path, compiler: str = "cc") -> None:
    """Compile and link `output`, a name of PAYLOADS or FLAT in any folder. CalledProcessError when it fails."""
    if output.name in FLAT:
        source, address = FLAT[output.name]
        flags = [f"-Wl,-Ttext={address:#x}", "-Wl,--oformat=binary", "-Wl,-e,_start"]
        sources: tuple[str, ...] = (source,)
        defines: tuple[str, ...] = ()
    else:
        sources, defines = PAYLOADS[output.name]
        flags = [f"-Wl,-T,{HERE / 'payload.ld'}"]
    paths = [str(HERE / source) for source in sources]
    command = [compiler, *CFLAGS, *defines, *LDFLAGS, *flags, *paths, "-o", str(output)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
