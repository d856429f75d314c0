# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from unikvm.hostvm.host import HostVm
from unikvm.hostvm.quirks import before_firmware


class Host:
    def __init__(self, kind: str) -> None:
        self.accel = SimpleNamespace(kind=kind)
        self.written: dict[str, bytes] = {}

    def exec(self, argv: list[str], *, stdin: bytes) -> None:
        assert argv[0] == "tee"
        self.written[argv[1].rpartition("/")[2]] = stdin


@pytest.mark.parametrize(
    ("kind", "uefi", "written"),
    [
        ("kvm", True, {}),
        ("tcg", False, {"use_zero_page": b"0"}),
        ("tcg", True, {"use_zero_page": b"0", "min_timer_period_us": b"1000000"}),
    ],
)
def test_only_an_emulated_host_is_told(kind: str, uefi: bool, written: dict[str, bytes]) -> None:
    host = Host(kind)
    before_firmware(cast(HostVm, host), uefi=uefi)
    assert host.written == written
