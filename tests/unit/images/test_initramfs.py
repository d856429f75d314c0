# SPDX-License-Identifier: GPL-2.0-only
"""Archives, read back by cpio itself where it is there, and by hand."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.images.guest import guest_initramfs
from unikvm.images.initramfs import Initramfs
from unikvm.images.kernel import Kernel
from unit.images.test_modules import make_module

Entries = dict[str, tuple[int, bytes, tuple[int, int]]]


def read_back(data: bytes) -> Entries:
    """Every entry of an archive, or of several behind each other: mode, content, device."""
    entries: Entries = {}
    at = 0
    while at < len(data):
        if data[at : at + 4] == bytes(4):
            at += 4
            continue
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        content_at = name_at + fields[11] + -(110 + fields[11]) % 4
        content = data[content_at : content_at + fields[6]]
        at = content_at + fields[6] + -fields[6] % 4
        if name != "TRAILER!!!":
            entries[name] = (fields[1], content, (fields[9], fields[10]))
    return entries


def written(archive: Initramfs) -> bytes:
    buffer = io.BytesIO()
    archive.write(buffer)
    return buffer.getvalue()


def test_entries_and_their_parents() -> None:
    archive = Initramfs()
    archive.add_file("/a/b/file", b"12345", 0o644)
    archive.add_symlink("link", "/a/b/file")
    archive.add_node("/dev/console", stat.S_IFCHR | 0o600, 5, 1)
    entries = read_back(written(archive))
    assert list(entries) == ["a", "a/b", "a/b/file", "link", "dev", "dev/console"]
    assert entries["a/b/file"] == (stat.S_IFREG | 0o644, b"12345", (0, 0))
    assert entries["link"][:2] == (stat.S_IFLNK | 0o777, b"/a/b/file")
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert stat.S_ISDIR(entries["a/b"][0])


def test_the_same_content_gives_the_same_bytes() -> None:
    archives = []
    for _ in range(2):
        archive = Initramfs()
        for length in range(9):
            archive.add_file(f"/f{length}", bytes(length))
        archives.append(written(archive))
    assert archives[0] == archives[1]
    assert len(archives[0]) % 4 == 0


def test_the_guests_archive(tmp_path: Path, save: Callable[[str, bytes], str]) -> None:
    modules = tmp_path / "lib"
    modules.mkdir()
    make_module(modules, "low")
    make_module(modules, "high", "low")
    kernel = Kernel("/none", "6.1.0-test", str(modules))
    init = save("init", b"the init")
    base = Initramfs()
    base.add_file("/init", b"the user's")
    base.add_file("/mine", b"mine")
    said: list[str] = []

    def made(base: str | None) -> str:
        return guest_initramfs(
            kernel, init=init, modules=("high",), optional=("absent",), base=base, progress=said.append
        )

    path = made(save("base.cpio", written(base)))
    entries = read_back(Path(path).read_bytes())
    assert entries["init"][1] == b"the init"
    assert entries["mine"][1] == b"mine"
    listed = entries["unikvm/modules.list"][1].decode().split()
    assert listed == ["/lib/modules/6.1.0-test/low.ko", "/lib/modules/6.1.0-test/high.ko"]
    assert all(name.strip("/") in entries for name in listed)
    assert any("no module absent" in line for line in said)
    assert made(str(tmp_path / "base.cpio")) == path
    assert made(None) != path
    save("init", b"another init")
    assert made(str(tmp_path / "base.cpio")) != path


def test_a_kernel_whose_modules_nobody_knows(save: Callable[[str, bytes], str]) -> None:
    """All may be built in: there is a guest, without modules."""
    entries = read_back(Path(guest_initramfs(Kernel("/none", "6.1.0-test"), init=save("init", b"i"))).read_bytes())
    assert entries["unikvm/modules.list"][1] == b""
    assert not any(name.endswith(".ko") for name in entries)


def test_what_cpio_itself_reads(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    archive = Initramfs()
    archive.add_file("/a/file", b"x" * 1001, 0o640)
    archive.add_symlink("/a/link", "file")
    done = subprocess.run(["cpio", "-itv"], input=written(archive), capture_output=True, check=True)
    listed = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(words[0], words[4], words[8]) for words in listed] == [
        ("drwxr-xr-x", "0", "a"),
        ("-rw-r-----", "1001", "a/file"),
        ("lrwxrwxrwx", "4", "a/link"),
    ]


def test_what_cannot_be_written() -> None:
    archive = Initramfs()
    archive.add_file("/a", b"")
    with pytest.raises(CannotRun, match="a is no directory"):
        archive.add_file("/a/b", b"")
    with pytest.raises(CannotRun, match="no name for a file"):
        archive.add_file("x" * 4096, b"")

    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(CannotRun, match="too large"):
        archive.add_file("/huge", Huge())
