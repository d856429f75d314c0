# SPDX-License-Identifier: GPL-2.0-only
"""Fetching packages, with a stand-in for apt-get where it is to fail, and the real one where there is a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import all_ended
from unikvm.errors import CannotRun
from unikvm.images import cache, guest, packages
from unit.images.conftest import or_skip

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
        ('echo "E: Failed to fetch x  No answer [IP: ::1]" >&2; exit 100', "failed: No answer .is the network up"),
        ('echo "E: Failed to fetch x  404  Not Found [IP: ::1]" >&2; exit 100', "404 Not Found .`apt-get update`"),
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
    stand_in(
        tmp_path, monkeypatch, "apt-cache", 'echo "$3"; echo "  Depends: kmod"; echo "  Depends: linux-image-6.1-real"'
    )
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


def test_a_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-cache answers for the packages that match, which were not asked for."""
    stand_in(tmp_path, monkeypatch, "apt-cache", 'echo "linux-image-6.12.1-amd64"; echo "  Depends: kmod"')
    with pytest.raises(CannotRun, match=r"apt knows no package linux-image-6.12 .`apt-get update`"):
        packages.meant_by("linux-image-6.12", lambda _text: None)


def test_apt_speaks_the_language_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    stand_in(tmp_path, monkeypatch, "apt-cache", 'test "$LC_ALL" = C && echo "$3" && echo "  Depends: linux-image-1"')
    assert packages.meant_by("linux-image-meta", lambda _text: None) == "linux-image-1"


def test_a_killed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """apt-get ends with this program, and the next run removes what is left."""
    if not shutil.which("setpriv"):
        pytest.skip("util-linux' setpriv ties a download's life to its caller's")
    stand_in(
        tmp_path, monkeypatch, "apt-get", f"echo $$ > {tmp_path}/pid; head -c 100 /dev/zero > half.deb; exec sleep 60"
    )
    code = "from unikvm.images import packages; packages.fetched('p', print)"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TOOLS)}) as run:
        while not list(own_cache.glob("packages/.new-*/.download/half.deb")):
            time.sleep(0.01)
        assert cache._is_held(str(next(own_cache.glob("packages/.new-*"))))
        run.kill()
    pid = int((tmp_path / "pid").read_text())
    assert all_ended([pid])
    monkeypatch.setattr(cache, "ABANDONED_AFTER", -1)
    cache.write(cache.entry("packages", "other"), [b""])
    assert os.listdir(own_cache / "packages") == ["other"]


@pytest.mark.network
def test_a_real_package() -> None:
    folder = or_skip(lambda: packages.fetched("busybox-static", lambda _text: None))
    assert guest.busybox_binary().startswith(folder)
    assert guest.is_static(guest.busybox_binary())


@pytest.mark.network
def test_a_real_download_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    with pytest.raises(CannotRun, match=f"no room in the cache {small_disk}/unikvm: it holds . MiB, 0 MiB are free"):
        or_skip(lambda: packages.fetched("busybox-static", lambda _text: None))
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"]
