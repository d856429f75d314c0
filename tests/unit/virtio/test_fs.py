# SPDX-License-Identifier: GPL-2.0-only
"""virtio-fs with a real virtiofsd: FUSE requests over guest memory, and what comes when it is killed."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct, pack, unpack_from

import pytest

from unikvm.errors import CannotRun, UnikvmError
from unikvm.vhost import virtiofsd
from unikvm.vhost.backend import Program
from unikvm.virtio.fs import Fs
from unit.vhost.peer import Peer

from .driver import Bench, bench

SECONDS = 20.0
HEADER = Struct("<IIQQIIII")  # struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, extensions
OUT = Struct("<IiQ")  # struct fuse_out_header
ROOT = 1  # node
LOOKUP, FORGET, OPEN, READ, WRITE, INIT = 1, 2, 14, 15, 16, 26
ATTRIBUTES = 88 + 40  # struct fuse_entry_out

pytestmark = pytest.mark.skipif(not virtiofsd.find(), reason="no virtiofsd here")


class Client:
    """A driver of the file system's request queue."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.unique = 0
        self.answers: dict[int, int] = {}
        assert self.call(INIT, 0, pack("<IIII", 7, 31, 65536, 0), 64)[0] == 0

    def submit(self, opcode: int, node: int, body: bytes, room: int) -> int:
        """Make a request available; the address of its answer."""
        self.unique += 2
        header = HEADER.pack(HEADER.size + len(body), opcode, self.unique, node, 0, 0, 0, 0)
        out, rest = self.bench.buffer(OUT.size), self.bench.buffer(room)
        self.bench.rings[1].add([self.bench.buffer(header), self.bench.buffer(body)], [out, rest])
        return out[0]

    def wait(self, count: int = 1) -> None:
        self.bench.device.ring(1)
        end = time.monotonic() + SECONDS
        while count > 0:
            assert time.monotonic() < end, "no answer"
            self.bench.settle(1)
            count -= len(self.bench.rings[1].take_used())
            time.sleep(0.002)

    def call(self, opcode: int, node: int, body: bytes, room: int) -> tuple[int, bytes]:
        """A request: (errno, answer)."""
        at = self.submit(opcode, node, body, room)
        self.wait()
        length, error, unique = OUT.unpack(self.bench.memory.read(at, OUT.size))
        assert unique == self.unique
        return -error, self.bench.memory.read(at + OUT.size, length - OUT.size)

    def lookup(self, name: str) -> tuple[int, int]:
        """(errno, node) of a file in the root."""
        error, entry = self.call(LOOKUP, ROOT, name.encode() + b"\0", ATTRIBUTES)
        return error, unpack_from("<Q", entry)[0] if not error else 0

    def open(self, node: int, flags: int) -> tuple[int, int]:
        """(errno, handle) of a node."""
        error, opened = self.call(OPEN, node, pack("<II", flags, 0), 16)
        return error, unpack_from("<Q", opened)[0] if not error else 0


@contextmanager
def served(path: Path, said: list[str], *, readonly: bool = False) -> Iterator[tuple[Client, Program]]:
    server = virtiofsd.serve(virtiofsd.find(), str(path), readonly=readonly)
    with bench(Fs("tag", server, say=said.append)) as on:
        on.start(size=64)
        yield Client(on), server


def test_a_file_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with served(tmp_path, []) as (client, _):
        error, node = client.lookup("file")
        assert error == 0
        error, handle = client.open(node, os.O_RDWR)
        assert error == 0
        assert client.call(READ, node, pack("<QQIIQII", handle, 0, 5, 0, 0, 0, 0), 64) == (0, b"hello")
        body = pack("<QQIIQII", handle, 5, 6, 0, 0, 0, 0) + b" there"
        assert client.call(WRITE, node, body, 8)[0] == 0
        assert client.lookup("none")[0] == errno.ENOENT
        assert client.bench.transport.queue_interrupts[1] >= 1
    assert (tmp_path / "file").read_text() == "hello there"


def test_a_read_only_directory_is_so_whatever_the_guest_asks_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with served(tmp_path, [], readonly=True) as (client, _):
        _, node = client.lookup("file")
        assert client.open(node, os.O_RDONLY)[0] == 0
        assert client.open(node, os.O_RDWR)[0] == errno.EROFS
        assert client.open(node, os.O_WRONLY | os.O_TRUNC)[0] == errno.EROFS
    assert (tmp_path / "file").read_text() == "hello"


def test_kill_9_of_the_server_is_an_error_for_each_request(tmp_path: Path) -> None:
    """For those under way, and for those to come; and nothing is left of it."""
    said: list[str] = []
    with served(tmp_path, said) as (client, server):
        os.killpg(server.pid, signal.SIGSTOP)
        waiting = [client.submit(LOOKUP, ROOT, b"file\0", ATTRIBUTES) for _ in range(5)]
        client.bench.device.ring(1)
        os.killpg(server.pid, signal.SIGKILL)
        client.wait(5)
        answers = [OUT.unpack(client.bench.memory.read(at, OUT.size)) for at in waiting]
        assert [(length, error) for length, error, _ in answers] == [(OUT.size, -errno.ENOTCONN)] * 5
        assert [unique for _, _, unique in answers] == [4, 6, 8, 10, 12]
        assert client.lookup("file") == (errno.ENOTCONN, 0)
        assert said == [f"the file server of {tmp_path} is lost: signal 9 ended it"]
        assert server.pid == 0
        hiprio = client.bench.rings[0]
        header = HEADER.pack(HEADER.size + 8, FORGET, 99, ROOT, 0, 0, 0, 0)
        hiprio.add([client.bench.buffer(header + bytes(8))], [])
        client.bench.kick(0)
        assert hiprio.take_used() == [(0, 0)]
        for size in (0, 8, 39):  # no whole header: no answer to put anywhere
            client.bench.rings[1].add([client.bench.buffer(bytes(size))], [client.bench.buffer(OUT.size)])
        client.wait(3)
        assert not client.bench.device.fault


def test_the_server_ends_with_its_device(tmp_path: Path) -> None:
    with served(tmp_path, []) as (_, server):
        pid = server.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_a_directory_that_cannot_be_served_is_refused_in_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = virtiofsd.serve(virtiofsd.find(), str(tmp_path / "file"), readonly=False)
    device = Fs("tag", server)
    with pytest.raises(CannotRun, match=r"the file server of .* cannot be used: it ended with status 1"), bench(device):
        pass
    device.discard()


def test_tags_and_snapshots() -> None:
    assert Fs("root", Peer()).config == b"root".ljust(36, b"\0") + pack("<I", 1)
    for tag in ("", "x" * 37):
        with pytest.raises(CannotRun, match="1 to 36 bytes"):
            Fs(tag, Peer())
    with pytest.raises(UnikvmError, match="cannot be kept"):
        Fs("root", Peer()).save()
