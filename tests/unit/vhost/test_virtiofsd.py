# SPDX-License-Identifier: GPL-2.0-only
"""The file server: its command line, and what it can write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unikvm.sys.process import become_namespace_root, readonly_tree, spawn
from unikvm.vhost import virtiofsd


def test_options_of_both_programs(tmp_path: Path) -> None:
    in_c, in_rust = tmp_path / "c", tmp_path / "rust"
    in_c.write_bytes(b"\x7fELF -o source=PATH\0")
    in_rust.write_bytes(b"\x7fELF --shared-dir\0")
    args = virtiofsd.arguments(str(in_c), "/a,b\\c", readonly=False, fd=5)
    assert "source=/a\\,b\\\\c" in args
    assert "--fd=5" in args
    assert "cache=auto" in args
    rust = virtiofsd.arguments(str(in_rust), "/a,b", readonly=True, fd=5)
    assert "--shared-dir=/a,b" in rust
    assert "--cache=always" in rust
    assert "--no-announce-submounts" not in rust
    in_rust.write_bytes(b"\x7fELF --shared-dir\0no-announce-submounts\0")
    assert "--no-announce-submounts" in virtiofsd.arguments(str(in_rust), "/a,b", readonly=True, fd=5)


@pytest.mark.parametrize("whole", [True, False])
def test_the_servers_view_is_read_only_and_the_machine_is_not(tmp_path: Path, whole: bool) -> None:
    """`/` appears below another directory, all others over themselves."""
    served = "/" if whole else str(tmp_path)
    place = virtiofsd.place_of(served)
    seen = f"{place}{tmp_path}" if whole else place

    def prepare() -> None:
        become_namespace_root()
        readonly_tree(served, place)

    script = f"ls {seen} && ! touch {seen}/x 2>/dev/null && ! touch {place}/x 2>/dev/null"
    process = spawn(["/bin/sh", "-c", script], prepare=prepare)
    assert process.wait(20) == 0, process.log_text()
    process.close()
    (tmp_path / "still writable").touch()
    assert os.listdir(tmp_path) == ["still writable"]
