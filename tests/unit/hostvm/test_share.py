# SPDX-License-Identifier: GPL-2.0-only
"""File servers: what is served, and how they are started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.hostvm import share
from unikvm.sys.process import become_namespace_root, readonly_root, spawn
from unikvm.hostvm.share import Mount, NineP


def test_mounts(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert share.mounts((str(tmp_path / "link"),)) == [
        Mount("root", "/", True),
        Mount("share0", str(tmp_path), False),
    ]
    with pytest.raises(CannotRun, match="not a directory"):
        share.mounts((__file__,))


def test_9p_says_readonly_to_qemu() -> None:
    args = NineP([Mount("root", "/", True), Mount("share0", "/a,b", False)]).qemu_args()
    assert "readonly=on" in args[1]
    assert "path=/a,,b," in args[3]
    assert "readonly=off" in args[3]


def test_c_virtiofsd_options_are_escaped() -> None:
    args = share._virtiofsd_args("virtiofsd", True, Mount("share0", "/a,b\\c", False), 5)
    assert "source=/a\\,b\\\\c" in args
    assert "--fd=5" in args
    rust = share._virtiofsd_args("virtiofsd", False, Mount("share0", "/a,b", False), 5)
    assert "--shared-dir=/a,b" in rust


def test_without_virtiofsd_9p_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "find_virtiofsd", lambda: "")
    server, line = share.choose_server(share.mounts(()))
    assert server.fstype == "9p"
    assert "slower" in line


def test_without_a_sandbox_9p_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise PermissionError(1, "forbidden here")

    monkeypatch.setattr(share, "find_virtiofsd", lambda: "/bin/true")
    monkeypatch.setattr(share, "become_namespace_root", forbidden)
    server, line = share.choose_server(share.mounts(()))
    assert server.fstype == "9p"
    assert "forbidden here" in line


def test_the_servers_view_is_read_only_and_the_machine_is_not(tmp_path: Path) -> None:
    place = share._source(Mount("root", "/", True))

    def prepare() -> None:
        become_namespace_root()
        readonly_root(place)

    script = (
        f"cat {place}{__file__} >/dev/null && ! touch {place}{tmp_path}/x 2>/dev/null && ! touch {place}/x 2>/dev/null"
    )
    process = spawn(["/bin/sh", "-c", script], prepare=prepare)
    assert process.wait(20) == 0, process.log_text()
    process.close()
    (tmp_path / "still writable").touch()
    assert os.listdir(tmp_path) == ["still writable"]
