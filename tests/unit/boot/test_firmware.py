# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import iter_unpack, pack

import pytest

from unikvm.arch.x86_64 import layout
from unikvm.boot import firmware
from unikvm.boot.image import Entry
from unikvm.errors import CannotRun
from unikvm.memory import GuestMemory

KIB, MIB = 1 << 10, 1 << 20
CODE = bytes(range(256)) * KIB  # 256 KiB
VARIABLES = bytes(32) + pack("<Q4s", 8192, b"_FVH") + bytes(8148)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(layout.ram_layout(16 * MIB))
    yield made
    made.close()


def load(tmp_path: Path, memory: GuestMemory, code: bytes, variables: bytes | None = None) -> tuple[Entry, GuestMemory]:
    (tmp_path / "code").write_bytes(code)
    if variables is not None:
        (tmp_path / "vars").write_bytes(variables)
    return firmware.load(str(tmp_path / "code"), "" if variables is None else str(tmp_path / "vars"), memory)


def test_a_bios_ends_at_4_gib_and_at_1_mib(tmp_path: Path, memory: GuestMemory) -> None:
    entry, flash = load(tmp_path, memory, CODE)
    assert entry == Entry("reset", {})
    assert [(r.gpa, r.size) for r in flash.regions] == [((4 << 30) - len(CODE), len(CODE))]
    assert flash.read((4 << 30) - len(CODE), len(CODE)) == CODE
    assert memory.read(0xE0000, 0x20000) == CODE[-0x20000:]
    assert not any(memory.read(0xC0000, 0x20000))
    flash.close()


def test_variables_lie_below_the_code(tmp_path: Path, memory: GuestMemory) -> None:
    _, flash = load(tmp_path, memory, CODE[:65536], VARIABLES)
    variables, code = flash.regions
    assert variables.gpa + variables.size == code.gpa == (4 << 30) - 65536
    assert flash.read(variables.gpa, variables.size) == VARIABLES
    assert memory.read(0xF0000, 0x10000) == CODE[:65536]
    flash.close()


@pytest.mark.parametrize(
    ("code", "variables", "why"),
    [
        (b"", None, "not a firmware image: it has 0 bytes"),
        (CODE[:-1], None, "not a firmware image: it has 262143 bytes"),
        (CODE[:4096], None, "not a firmware image"),
        (CODE * 33, None, "64 KiB to 8 MiB"),
        (CODE + bytes(4096), None, "no code where a CPU starts"),
        (CODE + b"\xff" * 4096, None, "no code where a CPU starts"),
        (CODE, b"", "not a store of UEFI variables"),
        (CODE, CODE, "not a store of UEFI variables"),
        (CODE, VARIABLES[:-1], "not a store of UEFI variables"),
        (CODE * 32, VARIABLES, "not a store of UEFI variables"),
        (CODE, VARIABLES[:4096], "4096 bytes of a store of UEFI variables of 8192"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, memory: GuestMemory, code: bytes, variables: bytes | None, why: str
) -> None:
    with pytest.raises(CannotRun, match=why) as caught:
        load(tmp_path, memory, code, variables)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path, memory: GuestMemory) -> None:
    with pytest.raises(CannotRun, match="cannot open"):
        firmware.load(str(tmp_path / "none"), "", memory)


def test_what_firmware_is_told_of_ram() -> None:
    table = firmware.files(5 << 30)["etc/e820"]
    assert list(iter_unpack("<QQI", table)) == [(0, 3 << 30, 1), (4 << 30, 2 << 30, 1)]
