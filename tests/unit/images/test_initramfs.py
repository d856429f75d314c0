# SPDX-License-Identifier: GPL-2.0-only
"""Archives, read back by cpio itself where it is there, and by hand."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable
from pathlib import Path

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


def test_the_guests_archive(tmp_path: Path, save: Callable[[str, bytes], str], monkeypatch: object) -> None:
    modules = tmp_path / "lib"
    modules.mkdir()
    make_module(modules, "low")
    make_module(modules, "high", "low")
    kernel = Kernel("/none", "6.1.0-test", str(modules))
    init = save("init", b"the init")
    base = Initramfs()
    base.add_file("/init", b"the user's")
    base.add_file("/mine", b"mine")
    path = guest_initramfs(kernel, init=init, modules=("high",), base=save("base.cpio", written(base)))
    entries = read_back(Path(path).read_bytes())
    assert entries["init"][1] == b"the init"
    assert entries["mine"][1] == b"mine"
    listed = entries["unikvm/modules.list"][1].decode().split()
    assert listed == ["/lib/modules/6.1.0-test/low.ko", "/lib/modules/6.1.0-test/high.ko"]
    assert all(name.strip("/") in entries for name in listed)
    assert guest_initramfs(kernel, init=init, modules=("high",), base=str(tmp_path / "base.cpio")) == path
