# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.cli.options import firmware
from unikvm.cli.plan import Plan, load, make_plan
from unikvm.cli.run import quick_parse
from unikvm.errors import CannotRun
from unikvm.images.firmware import FirmwareImage
from unikvm.machine.config import Config, Firmware


def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str, command: tuple[str, ...] = ()) -> Plan:
    for name in ("CODE", "VARS"):
        (tmp_path / name).write_bytes(b"variables")
    found = {
        "ovmf": FirmwareImage(str(tmp_path / "CODE"), str(tmp_path / "VARS")),
        "seabios": FirmwareImage(str(tmp_path / "CODE")),
    }
    monkeypatch.setattr(firmware, "find_firmware", lambda spec, progress: found[spec])
    args = quick_parse(["-q", *words])
    assert args is not None
    args.__dict__["command"] = list(command)
    return make_plan(args, (), linux=False)


def test_a_plan_with_firmware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = plan(monkeypatch, tmp_path, "--firmware", "ovmf,debug")
    assert made.config.firmware == Firmware(str(tmp_path / "CODE"), str(tmp_path / "VARS"), debug=True)
    assert (made.linux, made.config.console, made.config.kernel) == (False, "serial", "")
    assert load(made.dump()) == made
    assert firmware.is_uefi(made.config.firmware)
    bios = plan(monkeypatch, tmp_path, "--firmware", "seabios").config.firmware
    assert bios is not None
    assert not firmware.is_uefi(bios)


def test_variables_that_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan(monkeypatch, tmp_path, "--firmware", "ovmf,vars=mine").config.firmware
    assert made is not None
    assert (made.vars, made.keep) == (str(tmp_path / "mine"), True)
    assert (tmp_path / "mine").read_bytes() == b"variables"
    (tmp_path / "mine").write_bytes(b"changed")
    plan(monkeypatch, tmp_path, "--firmware", "ovmf,vars=mine")
    assert (tmp_path / "mine").read_bytes() == b"changed"
    with pytest.raises(CannotRun, match="seabios has no variables"):
        plan(monkeypatch, tmp_path, "--firmware", "seabios,vars=other")


@pytest.mark.parametrize(
    ("words", "command", "why"),
    [
        (("-k", "linux"), (), "--firmware and --kernel do not go together"),
        (("linux",), (), "--firmware and --kernel do not go together"),
        (("-i", "initrd"), (), "--firmware and --initrd do not go together"),
        (("-p", "quiet"), (), "--firmware and --append do not go together"),
        ((), ("true",), "--firmware and -- CMD do not go together"),
        (("--root", "/"), (), "--firmware and --root do not go together"),
        (("--console", "virtio"), (), "does not know the virtio console"),
        (("--transport", "mmio"), (), "does not go with --transport mmio"),
        (("--timeout", "0"), (), "time-out of 0 s is not possible"),
    ],
)
def test_what_does_not_go_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], command: tuple[str, ...], why: str
) -> None:
    with pytest.raises(CannotRun, match=why) as caught:
        plan(monkeypatch, tmp_path, "--firmware", "ovmf", *words, command=command)
    assert "\n" not in str(caught.value)


def test_a_sub_option_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="'loud' is not understood"):
        plan(monkeypatch, tmp_path, "--firmware", "ovmf,loud")


def test_a_machine_has_one_or_the_other() -> None:
    with pytest.raises(CannotRun, match="firmware does not go with a kernel"):
        Config(kernel="linux", firmware=Firmware("code"))
