# SPDX-License-Identifier: GPL-2.0-only
"""Fetching packages, with a stand-in for apt-get where it is to fail, and the real one where there is a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.images import cache, packages

TOOLS = Path(__file__).resolve().parents[3] / "tools/kvm"


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program in front of the real one."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo "E: Unable to locate package nonsense" >&2; exit 100', "apt knows no package .*apt-get update"),
        ('echo "E: Failed to fetch x  Could not connect" >&2; exit 100', "Failed to fetch.*is the network up"),
        ('echo "E: write, No space left on device" >&2; exit 100', "no room in the cache"),
        ("head -c 1000 /dev/zero > half.deb; kill -9 $$", "fetching nonsense failed"),
        ("head -c 1000 /dev/zero > broken.deb", "not a sound package"),
    ],
)
def test_failures_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str, own_cache: Path
) -> None:
    stand_in(tmp_path, monkeypatch, "apt-get", script)
    with pytest.raises(CannotRun, match=message) as error:
        packages.fetched("nonsense", lambda _text: None)
    assert "\n" not in str(error.value)
    assert not list((own_cache / "packages").iterdir())


def test_a_meta_package_is_remembered_when_apt_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "apt-cache", 'echo "linux-image-meta"; echo "  Depends: linux-image-6.1-real"')
    said: list[str] = []
    assert packages.meant_by("linux-image-meta", said.append) == "linux-image-6.1-real"
    stand_in(tmp_path, monkeypatch, "apt-cache", "exit 1")
    assert packages.meant_by("linux-image-meta", said.append) == "linux-image-6.1-real"
    assert said == []
    long_ago = time.time() - 2 * packages.META_VALID
    os.utime(cache.entry("meta", "linux-image-meta"), (long_ago, long_ago))
    assert packages.meant_by("linux-image-meta", said.append) == "linux-image-6.1-real"
    assert "going on with" in said[0]
    with pytest.raises(CannotRun, match="apt knows no package"):
        packages.meant_by("linux-image-other", said.append)


def test_two_at_once_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "fetches"
    make = f"""
    echo x >> {log}; sleep 1; mkdir -p r/DEBIAN
    printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: m <m@h>\\nDescription: d\\n' > r/DEBIAN/control
    dpkg-deb -b r p.deb >/dev/null; rm -r r"""
    stand_in(tmp_path, monkeypatch, "apt-get", make)
    code = "import sys; from unikvm.images import packages; print(packages.fetched('p', print))"
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=30)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert log.read_text() == "x\n"
    assert sum("waiting for another unikvm" in output for output in outputs) == 1


def test_a_full_disk_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        with pytest.raises(CannotRun, match=f"no room in the cache {small}"):
            cache.write(cache.entry("some", "file"), [bytes(1 << 20)])
        assert not [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotRun, match="XDG_CACHE_HOME names another place"):
        cache.root()


@pytest.mark.network
def test_a_real_package() -> None:
    folder = packages.fetched("busybox-static", lambda _text: None)
    assert (Path(folder) / "bin/busybox").exists()
