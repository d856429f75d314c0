# SPDX-License-Identifier: GPL-2.0-only
"""What the commands say of a loaded kernel half: whether it matches, and whether it knows reasons."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from unikvm.cli import doctor, run_local
from unikvm.cli.main import main
from unikvm.errors import CANNOT_RUN
from unikvm.observe import exits
from unikvm.release import kernel_build_id
from unikvm.sys import companion
from unikvm.sys.companion import Info
from unikvm.uapi import unikvm as uapi


def loaded(**changed: Any) -> Info:
    """A kernel half of another commit, with the sources of this one."""
    fields = {
        "major": uapi.UNIKVM_ABI_MAJOR,
        "minor": uapi.UNIKVM_ABI_MINOR,
        "features": uapi.UNIKVM_FEATURE_EXIT_REASONS,
        "release": "0.1.0-g0123456789ab",
        "build_id": kernel_build_id(),
    }
    return Info(**{**fields, **changed})


MATCHES = [
    (loaded(), True),
    (loaded(features=0), True),
    (loaded(build_id="00" * 20), False),
    (loaded(major=uapi.UNIKVM_ABI_MAJOR + 1), False),
]


@pytest.mark.parametrize(("info", "match"), MATCHES)
def test_doctor_and_version_go_by_what_a_run_goes_by(
    info: Info, match: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companion, "info", lambda: info)
    _, verdict, text = doctor.check_kernel_half()
    assert verdict == ("ok" if match and info.has_reasons else "slow")
    assert info.release in text
    assert main(["version", "--json"]) == (0 if match else CANNOT_RUN)
    assert json.loads(capsys.readouterr().out)["match"] is match


@pytest.mark.parametrize("features", [0, uapi.UNIKVM_FEATURE_EXIT_REASONS])
def test_exits_without_reasons_are_told(
    features: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    counted = exits.Exits(1, 1, 0, 0.0, 0.0, 0.0, {"other": 1}, {}, {})
    monkeypatch.setattr(exits, "read", lambda _half: counted)
    half = SimpleNamespace(info=loaded(features=features))
    machine: Any = SimpleNamespace(parts=SimpleNamespace(companion=half))
    run_local.show_exits(machine)
    told = capfd.readouterr().err
    assert "1 exits" in told
    assert ("without offsets from BTF" in told) == (not features)
