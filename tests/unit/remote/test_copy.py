# SPDX-License-Identifier: GPL-2.0-only
"""Files into the guest and out of it: the same names, bytes, holes, modes and times, and nothing beside them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm import wire
from unikvm.errors import UnikvmError
from unikvm.remote import frames
from unikvm.remote.frames import Stream
from unikvm.remote.pull import pull
from unikvm.remote.push import push

from .conftest import Open

Copy = Callable[..., tuple[bool, list[str]]]
NOBODY = os.geteuid() != 0


@pytest.fixture(params=["push", "pull"])
def copy(agent: Open, request: pytest.FixtureRequest) -> Copy:
    """copy(source, target, into=…): whether all went well, and the warnings. Both ways have to do the same."""
    function = push if request.param == "push" else pull

    def run(source: Path | str, target: Path | str, *, into: bool = False) -> tuple[bool, list[str]]:
        warnings: list[str] = []
        stream, _ = agent()
        with stream:
            whole = function(stream, str(source), str(target), into=into, warn=warnings.append)
        return whole, warnings

    return run


def make_tree(top: Path) -> Path:
    (top / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "file").write_bytes(os.urandom(300_000))
    (top / "nothing").touch()
    (top / "deep" / "an odd\nname %41 ü").write_text("odd")
    (top / "deep" / "er" / "run").write_text("#!/bin/sh\n")
    (top / "deep" / "er" / "run").chmod(0o755)
    (top / "link").symlink_to("deep/er")
    (top / "dangling").symlink_to("/no/such place")
    os.utime(top / "dangling", ns=(5, 7 * 10**9 + 3), follow_symlinks=False)
    os.utime(top / "file", ns=(1, 1_234_567_890_123_456_789))
    (top / "empty").chmod(0o500)
    os.utime(top / "empty", ns=(1, 86_400 * 10**9))
    os.utime(top / "deep", ns=(1, 3))
    return top


def described(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        what: object = path.readlink() if path.is_symlink() else "dir" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(top))] = (what, oct(status.st_mode), status.st_mtime_ns)
    return found


def test_a_tree(copy: Copy, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    assert copy(source, tmp_path / "new") == (True, [])
    assert described(tmp_path / "new") == described(source)
    (tmp_path / "there").mkdir()
    assert copy(f"{source}/", tmp_path / "there") == (True, [])
    assert described(tmp_path / "there" / "source") == described(source)
    # Once more over what is there, and only what is in it.
    (tmp_path / "there" / "more").write_text("stays")
    (tmp_path / "there").chmod(0o711)
    assert copy(f"{source}/.", tmp_path / "there") == (True, [])
    assert described(tmp_path / "there")["file"] == described(source)["file"]
    assert (tmp_path / "there" / "more").read_text() == "stays"
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o711


def test_what_would_run_as_its_owner_does_not(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir(0o755)
    (tmp_path / "source/file").touch()
    for path in (tmp_path / "source/file", tmp_path / "source"):
        path.chmod(0o7755)
    assert copy(tmp_path / "source", tmp_path / "new") == (True, [])
    for name in ("new", "new/file"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o755


def test_one_file(copy: Copy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    source.chmod(0o640)
    assert copy(source, tmp_path / "other") == (True, [])
    assert (tmp_path / "other").read_bytes() == b"content"
    assert (tmp_path / "other").stat().st_mode & 0o7777 == 0o640
    (tmp_path / "other").write_bytes(b"much longer than that")
    inode = (tmp_path / "other").stat().st_ino
    assert copy(source, tmp_path / "other") == (True, [])
    assert (tmp_path / "other").read_bytes() == b"content"
    assert (tmp_path / "other").stat().st_ino == inode
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "dir").mkdir()
    assert copy(tmp_path / "link", tmp_path / "dir") == (True, [])  # what is named is followed
    assert not (tmp_path / "dir" / "link").is_symlink()


def test_a_sparse_file_stays_sparse(copy: Copy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"in the middle")
        file.seek(40 << 20)
        file.write(os.urandom(100_000))
    assert copy(source, tmp_path / "other") == (True, [])
    assert (tmp_path / "other").read_bytes() == source.read_bytes()
    assert (tmp_path / "other").stat().st_blocks * 512 < 1 << 20


def test_files_without_a_size(copy: Copy, tmp_path: Path) -> None:
    assert copy("/proc/version", tmp_path / "version") == (True, [])
    assert (tmp_path / "version").read_bytes() == Path("/proc/version").read_bytes()


def test_what_is_not_there(copy: Copy, tmp_path: Path) -> None:
    whole, warnings = copy(tmp_path / "no such", tmp_path / "x")
    assert not whole
    assert len(warnings) == 1
    assert warnings[0].endswith("no such: No such file or directory")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnikvmError, match="No such"):
        copy(tmp_path / "file", tmp_path / "no" / "such")
    with pytest.raises(UnikvmError, match="Not a directory"):
        copy(tmp_path / "file", tmp_path / "file", into=True)
    with pytest.raises(UnikvmError, match="No such file"):
        copy(tmp_path / "file", tmp_path / "nowhere", into=True)


def test_kinds_that_do_not_fit(copy: Copy, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    (tmp_path / "there" / "source" / "file").mkdir(parents=True)
    (tmp_path / "there" / "source" / "deep").write_text("a file")
    whole, warnings = copy(source, tmp_path / "there")
    assert not whole
    assert sorted(line.rpartition("/")[2] for line in warnings) == ["deep: Not a directory", "file: Is a directory"]
    assert (tmp_path / "there" / "source" / "nothing").exists()  # the rest went on
    assert (tmp_path / "there" / "source" / "deep").read_text() == "a file"
    whole, warnings = copy(source / "file", f"{tmp_path}/new/")
    assert (whole, [line.rpartition("/")[2] for line in warnings]) == (False, [": Is a directory"]) or warnings
    assert not (tmp_path / "new").exists()


def test_links_are_replaced_not_followed(copy: Copy, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    outside = tmp_path / "outside"
    outside.mkdir()
    there = tmp_path / "there" / "source"
    there.mkdir(parents=True)
    (there / "file").symlink_to(outside / "file")
    (there / "deep").symlink_to(outside)
    whole, warnings = copy(source, tmp_path / "there")
    assert not whole
    assert len(warnings) == 1
    assert "deep" in warnings[0]
    assert list(outside.iterdir()) == []
    assert (there / "file").read_bytes() == (source / "file").read_bytes()


def test_what_is_neither_file_nor_directory(copy: Copy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("x")
    whole, warnings = copy(source, tmp_path / "new")
    assert not whole
    assert "pipe: neither a file nor a directory" in warnings[0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.skipif(NOBODY, reason="/dev/full wants no privileges, mounts do")
def test_a_full_disk(copy: Copy, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(full)], check=False)
    if mounted.returncode:
        pytest.skip("mounts are not allowed here")
    try:
        (tmp_path / "big").write_bytes(bytes(range(256)) * (16 << 10))
        with pytest.raises(UnikvmError, match="big: No space left on device"):
            copy(tmp_path / "big", full)
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)  # the agent may still have it


def test_very_deep_trees_are_cut(copy: Copy, tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=top)
        below = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.close(top)
    (tmp_path / "new").mkdir()
    whole, warnings = copy(tmp_path / "d", tmp_path / "new")
    assert not whole
    assert len(warnings) == 1
    assert "too deep" in warnings[0]


# What a hostile agent could say


def told(tmp_path: Path, *sent: tuple[int, bytes]) -> None:
    ours, theirs = socket.socketpair()
    with Stream(theirs) as evil, Stream(ours) as stream:
        evil.put(frames.HELLO, frames.PROTOCOL.encode())
        for kind, data in sent:
            evil.put(kind, data)
        theirs.shutdown(socket.SHUT_WR)
        pull(stream, "/source", str(tmp_path / "into"), warn=lambda _line: None)


def entry(*words: str) -> tuple[int, bytes]:
    return frames.ENTRY, wire.encode(*words)[:-1]


TIME = "0.000000000"
FILE = entry("file", "f", "644", TIME, "0")
DIR = entry("dir", "d", "755", TIME)


@pytest.mark.parametrize(
    "sent",
    [
        (DIR, entry("file", "../evil", "644", TIME, "0")),
        (DIR, entry("file", "..", "644", TIME, "0")),
        (DIR, entry("dir", "/", "755", TIME)),
        (DIR, entry("dir", "", "755", TIME)),
        (DIR, (frames.UP, b""), FILE),
        (FILE, FILE),
        ((frames.UP, b""),),
        ((frames.DATA, b"x"),),
        ((frames.EOF, b""),),
        (DIR, (frames.DONE, b"")),
        (FILE, (frames.DONE, b"")),
        (entry("file", "f", "rw-", TIME, "0"),),
        (entry("file", "f", "644", "soon", "0"),),
        (entry("file"),),
        ((frames.OUT, b"x"),),
    ],
)
def test_malformed_copies(tmp_path: Path, sent: tuple[tuple[int, bytes], ...]) -> None:
    with pytest.raises(UnikvmError, match="agent sends"):
        told(tmp_path, *sent)
    assert not (tmp_path / "evil").exists()


def test_a_link_of_the_guest_leads_nowhere(tmp_path: Path) -> None:
    """First a link to a place outside, then a file of that name, and one below it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key").write_text("secret")
    link = entry("link", "way", str(outside), TIME)
    below = (entry("dir", "way", "755", TIME), entry("file", "key", "644", TIME, "0"), (frames.DATA, b"evil"))
    ends = ((frames.EOF, b""), (frames.UP, b""), (frames.UP, b""), (frames.DONE, b""))
    told(tmp_path, DIR, link, *below, *ends)
    assert (outside / "key").read_text() == "secret"
    assert (tmp_path / "into" / "way").is_symlink()
    (tmp_path / "into" / "source").mkdir()
    (tmp_path / "into" / "source" / "key").symlink_to(outside / "key")
    told(tmp_path, DIR, entry("file", "key", "644", TIME, "0"), (frames.EOF, b""), (frames.UP, b""), (frames.DONE, b""))
    assert (outside / "key").read_text() == "secret"
    assert (tmp_path / "into" / "source" / "key").read_bytes() == b""


def test_no_set_user_id_files(tmp_path: Path) -> None:
    told(tmp_path, entry("file", "f", "6755", TIME, "0"), (frames.EOF, b""), (frames.DONE, b""))
    assert (tmp_path / "into").stat().st_mode & 0o7777 == 0o755


KINDS = st.sampled_from([frames.ENTRY, frames.DATA, frames.HOLE, frames.EOF, frames.UP, frames.DONE, frames.REQUEST])
WORDS = st.sampled_from([b"file a 644 0.000000000 5", b"dir a 755 0.000000000", b"link a b 0.000000000", b"12", b""])


@settings(max_examples=60, deadline=None)
@given(sent=st.lists(st.tuples(KINDS, WORDS), max_size=12))
def test_any_order_of_frames(
    tmp_path_factory: pytest.TempPathFactory, init_binary: str, sent: list[tuple[int, bytes]]
) -> None:
    """The agent ends, whatever comes, and so do we."""
    place = tmp_path_factory.mktemp("any")
    try:
        told(place, *sent)
    except UnikvmError:
        pass
    ours, theirs = socket.socketpair()
    high = os.dup(theirs.fileno())
    process = subprocess.Popen(
        [init_binary, "--session"], preexec_fn=lambda: os.dup2(high, 3), pass_fds=(3,), stderr=subprocess.PIPE
    )
    os.close(high)
    theirs.close()
    with Stream(ours) as stream:
        try:
            stream.put_words(frames.REQUEST, "put", str(place), "x", "as")
            for kind, data in sent:
                stream.put(kind, data)
            ours.shutdown(socket.SHUT_WR)
            while True:
                stream.wait()
        except UnikvmError:
            pass
    _, errors = process.communicate(timeout=20)
    assert b"runtime error" not in errors
