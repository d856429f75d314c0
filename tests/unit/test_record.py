# SPDX-License-Identifier: GPL-2.0-only
"""Records: what dataclasses would do, without their start-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unikvm.record import Record, State


class Inner(Record):
    path: str
    readonly: bool = False


class Outer(Record):
    inner: tuple[Inner, ...]
    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("too small")


class Counter(State):
    value: int = 0
    name: str = ""


def test_defaults_equality_and_repr() -> None:
    assert Inner(path="a") == Inner(path="a", readonly=False)
    assert Inner(path="a") != Inner(path="b")
    assert repr(Inner(path="a")) == "Inner(path='a', readonly=False)"


def test_replace_makes_a_checked_copy() -> None:
    outer = Outer(inner=())
    assert outer.replace(size=4) == Outer(inner=(), size=4)
    with pytest.raises(ValueError, match="too small"):
        outer.replace(size=-1)


def test_records_are_frozen_and_states_are_not() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        Inner(path="a").path = "b"  # type: ignore[misc]
    counter = Counter()
    counter.value = 2
    copy = counter.replace()
    counter.value = 3
    assert copy == Counter(value=2)


@pytest.mark.parametrize("fields", [{}, {"path": "a", "wrong": 1}])
def test_missing_and_unknown_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Inner(**fields)  # type: ignore[arg-type]


def test_asdict_goes_inside() -> None:
    assert Outer(inner=(Inner(path="a"),)).asdict() == {"inner": ({"path": "a", "readonly": False},), "size": 3}


def test_the_heavy_modules_stay_out() -> None:
    code = "import sys, unikvm.record; print([m for m in ('dataclasses', 'typing', 're', 'enum') if m in sys.modules])"
    tools = Path(__file__).parents[2] / "tools/kvm"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tools, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
