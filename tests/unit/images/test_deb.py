# SPDX-License-Identifier: GPL-2.0-only
"""Reading .debs without dpkg: what dpkg-deb makes, and what is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.images import deb, packages

KINDS = ("xz", "gzip", "zstd", "none")


def make_deb(folder: Path, kind: str = "xz") -> Path:
    """A package with a file, a link and a directory."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@h>\nDescription: d\n"
    )
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/program").write_text("content" * 1000)
    (root / "usr/bin/program").chmod(0o755)
    (root / "usr/link").symlink_to("/usr/bin/program")
    path = folder / "p.deb"
    subprocess.run(["dpkg-deb", f"-Z{kind}", "-b", str(root), str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(autouse=True)
def _dpkg() -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb, which makes packages, is not installed")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_dpkg(tmp_path: Path, kind: str) -> None:
    path = make_deb(tmp_path, kind)
    targets = [tmp_path / "ours", tmp_path / "dpkg"]
    for target in targets:
        target.mkdir()
    deb.unpack(str(path), str(targets[0]))
    subprocess.run(["dpkg-deb", "-x", str(path), str(targets[1])], check=True)
    ours, theirs = (
        {
            str(found.relative_to(target)): (found.lstat().st_mode, os.readlink(found) if found.is_symlink() else "")
            for found in target.rglob("*")
        }
        for target in targets
    )
    assert ours == theirs
    assert (targets[0] / "usr/bin/program").read_text() == "content" * 1000


def test_it_takes_the_place_of_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_deb(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    packages.unpack(str(path), str(tmp_path / "out"))
    assert (tmp_path / "out/usr/bin/program").exists()


@pytest.mark.parametrize("length", [0, 5, 8, 40, 68, 150, -300, -60])
def test_damage_is_one_line(tmp_path: Path, length: int) -> None:
    path = make_deb(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:length])
    with pytest.raises(CannotRun, match="not a sound package") as error:
        deb.unpack(str(path), str(tmp_path))
    assert "\n" not in str(error.value)


def test_damaged_content(tmp_path: Path) -> None:
    path = make_deb(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"data.tar") + 60 + 40
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(CannotRun, match="not a sound package"):
        deb.unpack(str(path), str(tmp_path))
