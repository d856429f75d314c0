# SPDX-License-Identifier: GPL-2.0-only
"""The 9P server: what a client may do in the directory, and that it gets nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.p9 import messages as m
from unikvm.p9.server import NOBODY, Server


class Client:
    """Requests by their fields; fid 0 is the root."""

    def __init__(self, root: Path) -> None:
        self.server = Server(str(root))
        self.tag = 0
        self.ask(m.START, pack("<I", m.MAX_MESSAGE) + m.string(m.VERSION))
        self.ask(m.ATTACH, pack("<II", 0, NOBODY) + m.string(b"") * 2 + pack("<I", NOBODY))

    def ask(self, kind: int, body: bytes) -> bytes:
        """The answer's body; OSError where it is a refusal."""
        self.tag += 1
        answer = self.server.reply(kind, self.tag, memoryview(body))
        size, got, tag = m.HEADER.unpack_from(answer)
        assert (size, tag) == (len(answer), self.tag)
        if got == m.LERROR + 1:
            raise OSError(unpack_from("<I", answer, 7)[0], "refused")
        assert got == kind + 1
        return answer[m.HEADER.size :]

    def walk(self, fid: int, new: int, *names: bytes) -> int:
        """How many names were found."""
        found = self.ask(m.WALK, pack("<IIH", fid, new, len(names)) + b"".join(map(m.string, names)))
        return int.from_bytes(found[:2], "little")

    def open(self, fid: int, flags: int = os.O_RDONLY) -> None:
        self.ask(m.LOPEN, pack("<II", fid, flags))

    def create(self, fid: int, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644) -> None:
        self.ask(m.LCREATE, pack("<I", fid) + m.string(name) + pack("<III", flags, mode, os.getgid()))

    def read(self, fid: int, offset: int = 0, count: int = 1 << 20) -> bytes:
        return self.ask(m.READ, pack("<IQI", fid, offset, count))[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        answer = self.ask(m.WRITE, pack("<IQI", fid, offset, len(data)) + data)
        return int.from_bytes(answer, "little")

    def attributes(self, fid: int) -> tuple[int, ...]:
        found: tuple[int, ...] = m.ATTRIBUTES.unpack(self.ask(m.GETATTR, pack("<IQ", fid, m.GETATTR_BASIC)))
        return found

    def set(self, fid: int, valid: int, *, mode: int = 0, size: int = 0, times: tuple[int, ...] = (0, 0, 0, 0)) -> None:
        self.ask(m.SETATTR, pack("<IIIIIQ", fid, valid, mode, 0, 0, size) + pack("<4q", *times))

    def names(self, fid: int, count: int = 400) -> list[bytes]:
        found: list[bytes] = []
        offset = 0
        while True:
            data = self.ask(m.READDIR, pack("<IQI", fid, offset, count))[4:]
            if not data:
                return found
            while data:
                offset, _, length = unpack_from("<QBH", data, 13)
                found.append(data[24 : 24 + length])
                data = data[24 + length :]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_text("content")
    (root / "out").symlink_to("../secret")
    (root / "away").symlink_to("/")
    return root


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    it = Client(root)
    yield it
    it.server.close()


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=f"Errno {number}\\b")


def test_read_and_attributes(client: Client, root: Path) -> None:
    assert client.walk(0, 1, b"file") == 1
    client.open(1)
    assert client.read(1) == b"content"
    assert client.read(1, 3, 2) == b"te"
    assert client.read(1, 100) == b""
    now = (root / "file").stat()
    found = client.attributes(1)
    assert found[2:6] == (now.st_mode, now.st_uid, now.st_gid, 1)
    assert found[7] == 7
    assert found[12] * 10**9 + found[13] == now.st_mtime_ns


def test_files_are_written(client: Client, root: Path) -> None:
    client.walk(0, 1)
    client.create(1, b"new")
    assert client.write(1, b"hello") == 5
    assert client.write(1, b"J", 0) == 1
    client.set(1, m.SET_SIZE, size=4)
    client.set(1, m.SET_MODE, mode=0o600)
    client.set(1, m.SET_MTIME | m.SET_MTIME_GIVEN, times=(0, 0, -5, 7))
    client.ask(m.FSYNC, pack("<II", 1, 0))
    now = (root / "new").stat()
    assert (root / "new").read_bytes() == b"Jell"
    assert (stat.S_IMODE(now.st_mode), now.st_mtime_ns) == (0o600, -5 * 10**9 + 7)


def test_directories_links_and_names(client: Client, root: Path) -> None:
    client.ask(m.MKDIR, pack("<I", 0) + m.string(b"made") + pack("<II", 0o700, os.getgid()))
    client.ask(m.SYMLINK, pack("<I", 0) + m.string(b"link") + m.string(b"made/x") + pack("<I", os.getgid()))
    client.walk(0, 1, b"file")
    client.walk(0, 2, b"made")
    client.ask(m.LINK, pack("<II", 2, 1) + m.string(b"hard"))
    client.ask(m.RENAMEAT, pack("<I", 0) + m.string(b"file") + pack("<I", 2) + m.string(b"moved"))
    client.walk(0, 3, b"link")
    assert client.ask(m.READLINK, pack("<I", 3))[2:] == b"made/x"
    assert sorted(path.name for path in (root / "made").iterdir()) == ["hard", "moved"]
    with refused(errno.ENOTEMPTY):
        client.ask(m.UNLINKAT, pack("<I", 0) + m.string(b"made") + pack("<I", 0x200))
    for name in (b"hard", b"moved"):
        client.ask(m.UNLINKAT, pack("<I", 2) + m.string(name) + pack("<I", 0))
    client.ask(m.UNLINKAT, pack("<I", 0) + m.string(b"made") + pack("<I", 0x200))
    assert not (root / "made").exists()
    assert client.attributes(1)[5] == 0, "a file without a name is still there for who knows it"


def test_large_directories_come_in_parts(client: Client, root: Path) -> None:
    names = {b"%03d" % number for number in range(200)}
    for name in names:
        (root / "dir" / name.decode()).touch()
    client.walk(0, 1, b"dir")
    client.open(1, os.O_DIRECTORY)
    assert sorted(client.names(1)) == sorted({b".", b"..", *names})
    assert len(client.names(1)) == 202, "from the beginning again"


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc", b"x\0y"])
def test_what_is_no_name(client: Client, name: bytes) -> None:
    with refused(errno.EINVAL):
        client.walk(0, 1, name)
    with refused(errno.EINVAL):
        client.walk(0, 1)
        client.create(1, name)
    with refused(errno.EINVAL):
        client.ask(m.MKDIR, pack("<I", 0) + m.string(name) + pack("<II", 0o700, 0))


@pytest.mark.parametrize("name", [b"out", b"away"])
def test_links_lead_nowhere(client: Client, root: Path, name: bytes) -> None:
    """Neither on the way, nor at its end: what is behind a link is the client's to look up."""
    assert client.walk(0, 1, name) == 1
    with refused(errno.ELOOP):
        client.open(1)
    assert client.walk(0, 2, name, b"etc") == 1, "not a step behind the link"
    with refused(errno.EOPNOTSUPP):
        client.set(1, m.SET_MODE, mode=0)
    with refused(errno.EOPNOTSUPP):
        client.set(1, m.SET_SIZE, size=0)
    client.walk(0, 3)
    with refused(errno.ELOOP):
        client.create(3, name)
    before = (root.parent / "secret").stat()
    client.set(1, m.SET_MTIME | m.SET_MTIME_GIVEN, times=(0, 0, 5, 0))
    assert (root.parent / "secret").stat() == before
    assert (root / os.fsdecode(name)).lstat().st_mtime == 5
    assert (root.parent / "secret").read_text() == "outside"


def test_a_link_that_appears_on_a_known_way(client: Client, root: Path) -> None:
    """A fid is the directory that it was, whatever has its name now."""
    client.walk(0, 1, b"dir")
    (root / "dir").rmdir()
    (root / "dir").symlink_to("..")
    with refused(errno.ENOENT):
        client.walk(1, 2, b"secret")


def test_the_hosts_devices_are_not_the_guests(client: Client, root: Path) -> None:
    with refused(errno.EPERM):
        client.ask(m.MKNOD, pack("<I", 0) + m.string(b"null") + pack("<IIII", stat.S_IFCHR | 0o666, 1, 3, 0))
    client.ask(m.MKNOD, pack("<I", 0) + m.string(b"fifo") + pack("<IIII", stat.S_IFIFO | 0o666, 0, 0, os.getgid()))
    client.walk(0, 1, b"fifo")
    with refused(errno.ENXIO):
        client.open(1)
    client.walk(0, 2)
    with refused(errno.ENXIO):
        client.create(2, b"fifo")


def test_fids_that_are_none(client: Client) -> None:
    for kind, body in ((m.READ, pack("<IQI", 9, 0, 1)), (m.CLUNK, pack("<I", 9)), (m.GETATTR, pack("<IQ", 9, 0))):
        with refused(errno.EBADF):
            client.ask(kind, body)
    client.walk(0, 1)
    with refused(errno.EBADF):
        client.walk(0, 1)
    with refused(errno.EBADF):
        client.read(1)
    with refused(errno.EOPNOTSUPP):
        client.ask(30, pack("<II", 0, 5) + m.string(b"user.x"))
    client.ask(m.CLUNK, pack("<I", 1))
    client.walk(0, 1)


def test_no_descriptor_is_left(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    it = Client(root)
    for number in range(1, 20):
        it.walk(0, number, b"file")
        it.open(number)
    with refused(errno.ENOENT):
        it.walk(0, 30, b"none")
    assert it.walk(0, 30, b"dir", b"none") == 1
    it.server.close()
    assert os.listdir("/proc/self/fd") == before


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_message_has_an_answer_or_is_malformed(
    tmp_path_factory: pytest.TempPathFactory, kind: int, body: bytes
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    it = Client(root)
    try:
        it.ask(kind, body)
    except (OSError, m.Malformed):
        pass
    finally:
        it.server.close()
        shutil.rmtree(root)
