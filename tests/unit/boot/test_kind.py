# SPDX-License-Identifier: GPL-2.0-only
"""Linux kernels told from payloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.boot.kind import is_linux
from unit.boot.images import bzimage, elf, multiboot_header, note

ENTRY = note(b"Xen", 18, bytes(4))


@pytest.mark.parametrize(
    ("name", "content", "linux"),
    [
        ("bzImage", bzimage(), True),
        ("bzImage-cut", bzimage()[:0x204], False),
        ("vmlinux", elf(notes=note(b"Linux", 0x100, bytes(4)) + ENTRY), True),
        ("vmlinux-xen", elf(notes=note(b"Xen", 6, b"linux\0") + ENTRY), True),
        ("vmlinux-no-pvh", elf(notes=note(b"Linux", 0x100, bytes(4))), True),
        ("pvh.elf", elf(), False),
        ("plain.elf", elf(notes=b""), False),
        ("cut.elf", elf()[:40], False),
        ("multiboot.bin", multiboot_header(), False),
        ("empty", b"", False),
        ("linux.deb", b"whatever is in it", True),
    ],
)
def test_kinds(tmp_path: Path, name: str, content: bytes, linux: bool) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert is_linux(str(path)) is linux
