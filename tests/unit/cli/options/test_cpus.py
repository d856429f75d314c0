# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from unikvm.arch.x86_64.topology import Topology
from unikvm.cli.options.cpus import parse
from unikvm.errors import CannotRun
from unikvm.machine.config import Config


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("8,sockets=2,cores=2,threads=2", (2, 2, 2)),
        ("2,max=8", (1, 8, 1)),
        ("8,threads=2", (1, 4, 2)),
        ("8,cores=2", (4, 2, 1)),
        ("8,sockets=2,cores=2", (2, 2, 2)),
        ("1,max=6,sockets=3", (3, 2, 1)),
    ],
)
def test_shapes(text: str, shape: tuple[int, int, int]) -> None:
    fields = parse(text)
    assert fields["topology"] == Topology(*shape)
    config = Config(kernel="k", **fields)
    assert (config.cpus, config.all_cpus) == (int(text[0]), shape[0] * shape[1] * shape[2])


def test_models_and_places() -> None:
    assert parse("4,model=x86-64-v3,pin=0-2:8") == {"cpus": 4, "cpu_model": "x86-64-v3", "pin": (0, 1, 2, 8)}
    assert parse("4") == {"cpus": 4}
    assert parse("2,pin=1")["pin"] == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "no number of CPUs"),
        ("0", "no number of CPUs"),
        ("4,max=2", "more than max=2"),
        ("4,sockets=3", "do not make 4 CPUs"),
        ("8,sockets=2,cores=2,threads=1", "do not make 8 CPUs"),
        ("4,model=i386", "no CPU model 'i386'"),
        ("4,pin=", "names no CPUs"),
        ("4,pin=3-1", "no CPU range"),
        ("4,pin=0-99999999", "no CPU range"),
        ("4,dies=2", "not understood"),
        ("4,max=8,max=9", "twice"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        parse(text)
