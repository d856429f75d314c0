# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from unikvm.hostvm.host import HostVm
from unikvm.hostvm.quirks import before_firmware, before_many_cpus


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


@pytest.mark.parametrize(
    ("kind", "cpus", "given", "late"),
    [
        ("tcg", 8, "quiet", False),
        ("tcg", 9, "quiet", True),
        ("icount", 255, "quiet", True),
        ("kvm", 255, "quiet", False),
        ("tcg", 32, "quiet maxcpus=4", False),  # the user's word
    ],
)
def test_cpus_that_come_online_late(kind: str, cpus: int, given: str, late: bool) -> None:
    host = cast("HostVm", SimpleNamespace(accel=SimpleNamespace(kind=kind)))
    assert before_many_cpus(host, cpus, given) == (f"{given} maxcpus=1 unikvm.cpus clearcpuid=12" if late else given)
