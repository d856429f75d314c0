# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.images import firmware, packages
from unikvm.images.firmware import FirmwareImage, find_firmware, fresh_copy


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a package is unpacked into; nothing of the machine's own is found."""
    monkeypatch.setattr(packages, "fetched", lambda name, _say: str(tmp_path))
    in_root = firmware._in
    monkeypatch.setattr(firmware, "_in", lambda name, root: None if root == "/" else in_root(name, root))
    return tmp_path


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return str(path)


def test_by_name_from_a_package(package: Path) -> None:
    code = touch(package / "usr/share/OVMF/OVMF_CODE_4M.fd")
    with pytest.raises(CannotRun, match="the package ovmf has no firmware"):
        find_firmware("ovmf")
    fresh = touch(package / "usr/share/OVMF/OVMF_VARS_4M.fd")
    assert find_firmware("ovmf") == FirmwareImage(code, fresh)
    bios = touch(package / "usr/share/seabios/bios-256k.bin")
    assert find_firmware("seabios") == FirmwareImage(bios)


def test_no_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str, _say: object) -> str:
        raise CannotRun(f"apt knows no package {name}")

    monkeypatch.setattr(packages, "fetched", fetched)
    with pytest.raises(CannotRun, match="no ovmf firmware on this machine, and apt knows no package ovmf") as caught:
        find_firmware("ovmf")
    assert "install the package ovmf" in str(caught.value)


def test_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = touch(tmp_path / "MY_CODE.fd")
    assert find_firmware("MY_CODE.fd") == FirmwareImage(code)
    fresh = touch(tmp_path / "MY_VARS.fd")
    assert find_firmware(code) == FirmwareImage(code, fresh)
    assert find_firmware(touch(tmp_path / "bios.bin")) == FirmwareImage(str(tmp_path / "bios.bin"))
    with pytest.raises(CannotRun, match="no such firmware: coreboot") as caught:
        find_firmware("coreboot")
    assert "seabios or ovmf" in str(caught.value)
    with pytest.raises(CannotRun, match="no such firmware"):
        find_firmware("")


def test_a_fresh_copy_never_overwrites(tmp_path: Path) -> None:
    template = touch(tmp_path / "template")
    fresh_copy(template, str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_bytes() == b"image"
    with pytest.raises(CannotRun, match=r"cannot make .*mine"):
        fresh_copy(template, str(tmp_path / "mine"))
