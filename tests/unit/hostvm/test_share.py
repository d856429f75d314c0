# SPDX-License-Identifier: GPL-2.0-only
"""File servers: what is served, and how they are started."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.hostvm import share
from unikvm.hostvm.share import Mount, NineP
from unikvm.vhost import virtiofsd


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


def test_without_virtiofsd_9p_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "find", lambda: "")
    server, line = share.choose_server(share.mounts(()))
    assert server.fstype == "9p"
    assert "slower" in line


def test_without_a_sandbox_9p_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise PermissionError(1, "forbidden here")

    monkeypatch.setattr(virtiofsd, "find", lambda: "/bin/true")
    monkeypatch.setattr(virtiofsd, "become_namespace_root", forbidden)
    server, line = share.choose_server(share.mounts(()))
    assert server.fstype == "9p"
    assert "forbidden here" in line
