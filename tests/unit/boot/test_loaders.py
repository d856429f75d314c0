# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack, unpack_from

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.arch.x86_64 import layout
from unikvm.boot import loader
from unikvm.boot.image import Entry
from unikvm.errors import CannotRun
from unikvm.memory import GuestMemory
from unit.boot import images as made

MIB = 1 << 20
Boot = Callable[..., tuple[Entry, GuestMemory]]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Load the bytes as a kernel; checks that no file stays open."""
    memories = []

    def run(data: bytes, *, size: int = 64 * MIB, name: str = "kernel", **options: object) -> tuple[Entry, GuestMemory]:
        path = tmp_path / name
        path.write_bytes(data)
        for key in ("initrd",):
            if isinstance(options.get(key), bytes):
                (tmp_path / key).write_bytes(options[key])  # type: ignore[arg-type]
                options[key] = str(tmp_path / key)
        memory = GuestMemory(layout.ram_layout(size))
        memories.append(memory)
        before = set(os.listdir("/proc/self/fd"))
        try:
            return loader.load(str(path), memory, **options), memory  # type: ignore[arg-type]
        finally:
            assert set(os.listdir("/proc/self/fd")) <= before

    yield run
    for memory in memories:
        memory.close()


# PVH


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("width", ["<I", "<Q"])
def test_pvh(boot: Boot, bits: int, width: str) -> None:
    image = made.elf(bits, notes=made.note(b"Xen", 18, pack(width, made.PVH_ENTRY)))
    entry, memory = boot(image, cmdline="quiet", initrd=b"cpio" * 1000, rsdp=0xE0000)
    assert entry == Entry("protected", {"rip": made.PVH_ENTRY, "rbx": layout.BOOT_INFO})
    assert memory.read(0x10_0000, 120) == b"kernel" * 20
    magic, version, flags, modules, module_at, cmdline, rsdp, map_at, ranges = unpack(
        "<IIIIQQQQI", memory.read(layout.BOOT_INFO, 52)
    )
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, 0xE0000)
    assert memory.read(cmdline, 6) == b"quiet\0"
    address, size, _, _ = unpack("<QQQQ", memory.read(module_at, 32))
    assert (address, size) == (64 * MIB - 4096, 4000)
    assert memory.read(address, size) == b"cpio" * 1000
    told = [unpack("<QQI4x", memory.read(map_at + 24 * i, 24)) for i in range(ranges)]
    assert told == layout.e820(64 * MIB)
    assert map_at + 24 * ranges <= layout.BOOT_INFO_END


def test_pvh_without_initrd(boot: Boot) -> None:
    _, memory = boot(made.elf())
    assert unpack("<IQ", memory.read(layout.BOOT_INFO + 12, 12)) == (0, 0)


def test_initramfs_archives_are_one(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(b"second")
    _, memory = boot(made.elf(), initrd=b"first", modules=[str(tmp_path / "more")])
    (module_at,) = unpack("<Q", memory.read(layout.BOOT_INFO + 16, 8))
    address, size = unpack("<QQ", memory.read(module_at, 16))
    assert memory.read(address, size) == b"first\0\0\0second"


def test_linux_cuts_long_command_lines_so_we_refuse(boot: Boot) -> None:
    linux = made.elf(notes=made.note(b"Linux", 0x100, b"salt") + made.note(b"Xen", 18, pack("<I", made.PVH_ENTRY)))
    boot(linux, cmdline="x" * 2047)
    with pytest.raises(CannotRun, match="2048 bytes, the limit is 2047"):
        boot(linux, cmdline="x" * 2048)
    boot(made.elf(), cmdline="x" * 65535)
    with pytest.raises(CannotRun, match="the limit is 65535"):
        boot(made.elf(), cmdline="x" * 65536)
    with pytest.raises(CannotRun, match="zero byte"):
        boot(made.elf(), cmdline="a\0b")


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (made.elf()[:40], "truncated: no ELF header"),
        (made.elf()[:100], "program headers are beyond its end"),
        (made.elf()[:200], "truncated or corrupt"),
        (made.elf(machine=183), "not for x86"),
        (made.elf(notes=b""), "neither a PVH note nor a multiboot header"),
        (made.elf(notes=made.note(b"Xen", 18, pack("<I", 0x500_0000))), "in no segment"),
        (made.elf(segments=((0x10_0000, b"a" * 20, 0x1000), (0x10_0800, b"b", 1))), "segments overlap at 0x100800"),
        (made.elf(segments=((0x10_0000, b"a" * 20, 10),)), "truncated or corrupt"),
        (made.elf(segments=()), "nothing to load"),
        (made.elf(segments=((0x10_0000, b"", 100 * MIB),)), "needs at least 101M: -m 101M"),
        (made.elf(segments=((0xFFFF_0000, b"", MIB),)), "there is no RAM"),
        (made.elf(segments=((1 << 63, b"", 1 << 63),)), "there is no RAM"),
        (made.elf(segments=((0x6800, b"x", 1),)), "over the VMM's own data"),
        (b"\x7fELF" + bytes(60), "not for x86"),
        (made.elf()[:54] + pack("<HH", 56, 0) + made.elf()[58:], "no sane program headers"),
        (made.elf()[:16] + b"\x01" + made.elf()[17:], "not an executable"),
        (b"", "it is empty"),
        (b"#!/bin/sh\n" * 100, "not a kernel that unikvm knows"),
    ],
)
def test_bad_elf_files(boot: Boot, image: bytes, why: str) -> None:
    with pytest.raises(CannotRun, match=why) as caught:
        boot(image)
    assert "\n" not in str(caught.value)


def test_initrd_that_does_not_fit(boot: Boot) -> None:
    with pytest.raises(CannotRun, match=r"too small.*at least 4M"):
        boot(made.elf(), size=2 * MIB, initrd=bytes(2 * MIB))
    with pytest.raises(CannotRun, match="initramfs is empty"):
        boot(made.elf(), initrd=b"")


def test_initrd_before_the_kernel_where_there_is_no_room_behind_it(boot: Boot) -> None:
    notes = made.note(b"Xen", 18, pack("<I", 0x50_0000))
    image = made.elf(segments=((0x50_0000, b"kernel", 0x10_0000),), notes=notes)
    archive = bytes(range(256)) * (3 << 12)  # 3 MiB
    _, memory = boot(image, size=7 * MIB, initrd=archive)
    (module_at,) = unpack("<Q", memory.read(layout.BOOT_INFO + 16, 8))
    address, size, _, _ = unpack("<QQQQ", memory.read(module_at, 32))
    assert (address, size) == (2 * MIB, 3 * MIB)
    assert memory.read(address, size) == archive
    assert memory.read(0x50_0000, 6) == b"kernel"
    boot(image, size=7 * MIB, initrd=bytes(4 * MIB))
    with pytest.raises(CannotRun, match=r"too small.*at least 11M"):
        boot(image, size=7 * MIB, initrd=bytes(4 * MIB + 1))


def test_files_that_are_none(boot: Boot, tmp_path: Path) -> None:
    memory = GuestMemory([(0, MIB)])
    with pytest.raises(CannotRun, match=r"cannot open .*No such file"):
        loader.load(str(tmp_path / "none"), memory)
    with pytest.raises(CannotRun, match="not a regular file"):
        loader.load(str(tmp_path), memory)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CannotRun, match="not a regular file"):
        loader.load(str(tmp_path / "fifo"), memory)
    with pytest.raises(CannotRun, match=r"cannot open .*initrd"):
        boot(made.elf(), initrd=str(tmp_path / "no-initrd"))
    memory.close()


# bzImage


def test_bzimage(boot: Boot) -> None:
    code = bytes(range(256)) * 16
    entry, memory = boot(made.bzimage(code=code), cmdline="quiet", initrd=b"x" * 5000, rsdp=0xE0000)
    assert entry == Entry("long", {"rip": 0x100_0200, "rsi": layout.ZERO_PAGE})
    assert memory.read(0x100_0000, len(code)) == code
    page = memory.read(layout.ZERO_PAGE, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert memory.read(unpack_from("<I", page, 0x228)[0], 6) == b"quiet\0"
    address, size = unpack_from("<II", page, 0x218)
    assert memory.read(address, size) == b"x" * 5000
    told = [unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert told == layout.e820(64 * MIB)
    assert not any(page[0x78:0x1E8])  # a clean page: only the header is copied


@pytest.mark.parametrize(("version", "flags"), [(0x20F, 0), (0x20B, 1), (0x20A, 0)])
def test_a_bzimage_without_a_64_bit_entry(boot: Boot, version: int, flags: int) -> None:
    """Before 2.12 there are no xloadflags, whatever lies there."""
    entry, memory = boot(made.bzimage(version=version, xloadflags=flags), cmdline="quiet")
    assert entry == Entry("protected", {"rip": 0x100_0000, "rsi": layout.ZERO_PAGE})
    assert memory.read(layout.ZERO_PAGE + 0x202, 4) == b"HdrS"
    assert unpack("<I", memory.read(layout.ZERO_PAGE + 0x214, 4)) == (0x100_0000,)


def test_a_vmlinux_without_a_pvh_note(boot: Boot) -> None:
    image = made.elf(notes=made.note(b"Linux", 0x100, b"salt"), entry=0x10_0010)
    entry, memory = boot(image, cmdline="quiet", initrd=b"x" * 5000, rsdp=0xE0000)
    assert entry == Entry("long", {"rip": 0x10_0010, "rsi": layout.ZERO_PAGE})
    page = memory.read(layout.ZERO_PAGE, 4096)
    assert (page[0x1FE:0x200], page[0x202:0x206], page[0x210]) == (b"\x55\xaa", b"HdrS", 0xFF)
    assert unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert memory.read(unpack_from("<I", page, 0x228)[0], 6) == b"quiet\0"
    address, size = unpack_from("<II", page, 0x218)
    assert memory.read(address, size) == b"x" * 5000
    assert page[0x1E8] == len(layout.e820(64 * MIB))
    with pytest.raises(CannotRun, match="entry point 0x50 is in no segment"):
        boot(made.elf(notes=made.note(b"Linux", 0x100, b"salt"), entry=0x50))
    with pytest.raises(CannotRun, match="neither a PVH note nor a multiboot header"):
        boot(made.elf(32, notes=made.note(b"Linux", 0x100, b"salt")))


def test_bzimage_initrd_stays_below_its_limit(boot: Boot) -> None:
    _, memory = boot(made.bzimage(initrd_max=0x1FF_FFFF), initrd=b"x" * 5000)
    (address,) = unpack("<I", memory.read(layout.ZERO_PAGE + 0x218, 4))
    assert address == 0x200_0000 - 8192
    _, memory = boot(made.bzimage(initrd_max=0x10F_FFFF), initrd=b"x" * 5000)
    (address,) = unpack("<I", memory.read(layout.ZERO_PAGE + 0x218, 4))
    assert address == 0x100_0000 - 8192  # before the kernel, which fills [0x100_0000, 0x110_0000)
    with pytest.raises(CannotRun, match="does not fit below 0x1100000"):
        boot(made.bzimage(initrd_max=0x10F_FFFF), initrd=bytes(15 * MIB + 1))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (made.bzimage()[:600], "truncated: no Linux setup header"),
        (made.bzimage()[:3000], "truncated: .* announced, 3000 are there"),
        (made.bzimage(version=0x209), "boot protocol 2.09 is too old"),
        (made.bzimage(loadflags=0), "too old"),
        (made.bzimage(init_size=128 * MIB), "needs at least 144M"),
        (made.bzimage(address=0x1000), "corrupt: it prefers to be at 0x1000"),
        (made.bzimage(address=1 << 40), "no RAM"),
        (made.bzimage(code=b""), "truncated"),
    ],
)
def test_bad_bzimages(boot: Boot, image: bytes, why: str) -> None:
    with pytest.raises(CannotRun, match=why):
        boot(image)


def test_bzimage_command_line_limit_is_its_own(boot: Boot) -> None:
    boot(made.bzimage(cmdline_size=255), cmdline="x" * 255)
    with pytest.raises(CannotRun, match="the limit is 255"):
        boot(made.bzimage(cmdline_size=255), cmdline="x" * 256)


def test_bzimage_last_paragraph_may_be_short(boot: Boot) -> None:
    _, memory = boot(made.bzimage(code=b"\x90" * 4090 + b"end"))
    assert memory.read(0x100_0000 + 4090, 4) == b"end\0"


# multiboot


def test_multiboot_elf(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "second").write_bytes(b"2")
    segment = (0x10_0000, made.multiboot_header(3) + b"code", 0x1000)
    image = made.elf(32, segments=(segment,), notes=b"", machine=3, entry=0xC010_0004, virtual=0xC000_0000)
    entry, memory = boot(image, cmdline="a b", initrd=b"module", modules=[str(tmp_path / "second")])
    assert entry == Entry("protected", {"rip": 0x10_0004, "rax": 0x2BAD_B002, "rbx": layout.BOOT_INFO})
    info = memory.read(layout.BOOT_INFO, 88)
    flags, low, upper, _, cmdline, modules, modules_at = unpack_from("<7I", info)
    assert (flags, low, upper, modules) == (0x24D, 639, 63 * 1024, 2)
    assert memory.read(cmdline, 4) == b"a b\0"
    first = unpack("<IIII", memory.read(modules_at, 16))
    second = unpack("<IIII", memory.read(modules_at + 16, 16))
    assert memory.read(first[0], first[1] - first[0]) == b"module"
    assert memory.read(second[0], second[1] - second[0]) == b"2"
    assert first[0] % 4096 == second[0] % 4096 == 0
    assert memory.read(second[2], 7) == b"second\0"
    length, at = unpack_from("<II", info, 44)
    told = [unpack("<4xQQI", memory.read(at + 24 * i, 24)) for i in range(length // 24)]
    assert told == layout.e820(64 * MIB)
    assert memory.read(unpack_from("<I", info, 64)[0], 7) == b"unikvm\0"


def test_multiboot_by_addresses(boot: Boot) -> None:
    header_at, start = 64, 0x20_0000
    header = made.multiboot_header(1 << 16, start + 64, start, start + 200, start + 0x3000, start + 96)
    image = bytes(header_at) + header + b"c" * 200
    entry, memory = boot(image)
    assert entry.registers["rip"] == start + 96
    assert memory.read(start, 201) == image[:200] + b"\0"


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (made.multiboot_header(1 << 4), "does not have"),
        (made.multiboot_header(1 << 16), "truncated: its multiboot header"),
        (made.multiboot_header(1 << 16, 0x10_0000, 0x20_0000, 0, 0, 0), "contradict"),
        (made.multiboot_header(1 << 16, 0x20_0000, 0x20_0000, 0x30_0000, 0, 0x20_0000), "reaches beyond the file"),
        (made.multiboot_header(1 << 16, 0x20_0000, 0x20_0000, 0, 0, 0x10_0000), "in no segment"),
        (made.multiboot_header(0), "not an ELF file"),
    ],
)
def test_bad_multiboot_files(boot: Boot, image: bytes, why: str) -> None:
    with pytest.raises(CannotRun, match=why):
        boot(image)


def test_multiboot_module_limits(boot: Boot, tmp_path: Path) -> None:
    image = made.elf(32, segments=((0x10_0000, made.multiboot_header(), 16),), notes=b"", machine=3)
    with pytest.raises(CannotRun, match="needs at least 4M"):
        boot(image, size=2 * MIB, initrd=bytes(2 * MIB))
    (tmp_path / "m").write_bytes(b"m")
    with pytest.raises(CannotRun, match="too many"):
        boot(image, modules=[str(tmp_path / "m")] * 17)
    with pytest.raises(CannotRun, match="the command line has"):
        boot(image, cmdline="x" * 65536)


# flat


def test_flat(boot: Boot) -> None:
    entry, memory = boot(b"\xf4" * 10, size=MIB, name="boot.bin")
    assert entry == Entry("real", {"rip": 0x7C00, "rsp": 0x7C00})
    assert memory.read(0x7C00, 11) == b"\xf4" * 10 + b"\0"
    entry, _ = boot(made.elf(), flat_at=0x1_0000)
    assert entry.registers["rip"] == 0x1_0000


@pytest.mark.parametrize(
    ("image", "options", "why"),
    [
        (b"", {"flat_at": 0x7C00}, "empty"),
        (b"x", {"flat_at": 0x10_0000}, "cannot start at 0x100000"),
        (bytes(MIB), {"flat_at": 0x7C00}, "do not fit"),
        (b"x", {"flat_at": 0x7C00, "cmdline": "a"}, "no command line"),
    ],
)
def test_bad_flat_files(boot: Boot, image: bytes, options: dict[str, object], why: str) -> None:
    with pytest.raises(CannotRun, match=why):
        boot(image, **options)


# whatever is in the file, the answer is an entry or one line

SEEDS = [
    made.elf(),
    made.elf(32),
    made.bzimage(),
    made.elf(32, segments=((0x10_0000, made.multiboot_header(), 16),), notes=b"", machine=3),
    bytes(64) + made.multiboot_header(1 << 16, 0x20_0040, 0x20_0000, 0, 0, 0x20_0060) + bytes(99),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 0x290), st.binary(min_size=1, max_size=8)), max_size=4),
    length=st.integers(0, 7000),
)
def test_corrupt_files(tmp_path: Path, seed: bytes, changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(seed)
    for at, new in changes:
        at %= len(data)
        data[at : at + len(new)] = new[: len(data) - at]
    path = tmp_path / "corrupt"
    path.write_bytes(data[:length])
    memory = GuestMemory([(0, 32 * MIB)])
    try:
        entry = loader.load(str(path), memory, cmdline="x")
    except CannotRun as error:
        message = str(error)
    else:
        message = ""
        assert 0 <= entry.registers["rip"] < 32 * MIB
    finally:
        memory.close()
    assert "\n" not in message
