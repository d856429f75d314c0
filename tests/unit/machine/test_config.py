# SPDX-License-Identifier: GPL-2.0-only
"""What a machine may be made of."""

from __future__ import annotations

import pytest

from unikvm.arch.x86_64.topology import Topology
from unikvm.errors import CannotRun
from unikvm.machine.config import Config
from unikvm.units import MIB


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 256}, "256 CPUs"),
        ({"cpus": 4, "topology": Topology(cores=2)}, "4 of 2 CPUs"),
        ({"cpus": 4, "topology": Topology(cores=256)}, "4 of 256 CPUs"),
        ({"hotplug": True, "transport": "mmio"}, "only come and go on PCI"),
        ({"memory": 4096}, "too small"),
        ({"memory": MIB + 1}, "multiple of 4096"),
        ({"console": "vga"}, "no console"),
        ({"transport": "ccw"}, "no transport"),
    ],
)
def test_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        Config(kernel="k", **fields)  # type: ignore[arg-type]


def test_more_memory_than_the_host_has_is_refused(tmp_path: object) -> None:
    from unikvm.machine.builder import check_memory

    with pytest.raises(CannotRun, match="more than this host's"):
        check_memory(1 << 60)
