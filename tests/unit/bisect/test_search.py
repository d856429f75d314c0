# SPDX-License-Identifier: GPL-2.0-only
"""The exact and the Bayesian search, over histories whose first bad version is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unikvm.bisect.flaky import Bayes
from unikvm.bisect.search import Contradiction, Dag, Exact, bits
from unikvm.errors import CannotRun


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    """Histories with merges, all of which end in the last version."""
    count = draw(st.integers(1, 40))
    parents: list[list[int]] = []
    heads: set[int] = set()
    for version in range(count):
        above = draw(st.lists(st.integers(0, version - 1), max_size=2, unique=True)) if version else []
        if version == count - 1:
            above = sorted(heads | set(above))
        parents.append(above)
        heads = heads - set(above) | {version}
    return Dag(parents)


def is_bad(dag: Dag, version: int, first: int) -> bool:
    return bool(dag.upto[version] >> first & 1)


def test_ancestors_of_merges() -> None:
    dag = Dag([[], [0], [0], [1, 2]])
    assert [list(bits(mask)) for mask in dag.upto] == [[0], [0, 1], [0, 2], [0, 1, 2, 3]]


@given(dags(), st.data())
def test_exact_finds_the_first_bad_version(dag: Dag, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(dag) - 1))
    engine = Exact(dag)
    runs = 0
    while (version := engine.choose()) is not None:
        engine.observe(version, is_bad(dag, version, first))
        runs += 1
    assert engine.is_over()
    assert engine.answer() == [(first, 1.0)]
    assert runs < len(dag)


@pytest.mark.parametrize("count", [1, 2, 40, 1000])
def test_exact_halves_a_line(count: int) -> None:
    for first in {0, count // 3, count - 1}:
        engine = Exact(Dag.line(count))
        runs = 0
        while (version := engine.choose()) is not None:
            engine.observe(version, version >= first)
            runs += 1
        assert engine.answer()[0][0] == first
        assert runs <= (count - 1).bit_length()


@given(dags(), st.data())
def test_skipped_versions_stay_suspects(dag: Dag, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(dag) - 1))
    skipped = data.draw(st.sets(st.integers(0, len(dag) - 1)))
    engine = Exact(dag)
    while (version := engine.choose()) is not None:
        if version in skipped:
            engine.skip(version)
        else:
            engine.observe(version, is_bad(dag, version, first))
    assert first in [version for version, _ in engine.answer()]
    if not skipped:
        assert engine.is_over()


def test_a_range_that_does_not_build_is_left_quickly() -> None:
    """Breakage comes in ranges: after a skip the next run is not its neighbour."""
    engine = Exact(Dag.line(100))
    broken = range(40, 60)
    runs = 0
    while (version := engine.choose()) is not None:
        runs += 1
        if version in broken:
            engine.skip(version)
        else:
            engine.observe(version, version >= 75)
    assert engine.answer() == [(75, 1.0)]
    assert runs <= 12


def test_several_at_once_need_fewer_rounds() -> None:
    engine = Exact(Dag.line(64))
    rounds = 0
    while not engine.is_over():
        pending: list[int] = []
        while len(pending) < 3 and (version := engine.choose(pending)) is not None:
            pending.append(version)
        for version in pending:
            engine.observe(version, version >= 41)
        rounds += 1
    assert engine.answer()[0][0] == 41
    assert rounds == 3  # quarters


def test_contradicting_results() -> None:
    engine = Exact(Dag.line(4))
    engine.observe(1, True)
    with pytest.raises(Contradiction, match="--flaky"):
        engine.observe(2, False)


def search_flaky(seed: int, rate: float, false: float, **options: float) -> tuple[bool, int]:
    """Whether Bayes found the first of 40, and its runs."""
    chance = random.Random(seed)
    first = chance.randrange(40)
    engine = Bayes(Dag.line(40), good_runs=(0, 5), **options)
    engine.observe(39, True)
    runs = 0
    while not engine.is_over() and runs < 500:
        version = engine.choose()
        assert version is not None
        engine.observe(version, chance.random() < (rate if version >= first else false))
        runs += 1
    return engine.answer()[0][0] == first, runs


@pytest.mark.parametrize(
    ("rate", "false", "options", "most"),
    [
        pytest.param(0.2, 0.0, {}, 140, id="rates estimated"),
        pytest.param(0.2, 0.0, {"failure_rate": 0.2, "false_rate": 0.0}, 100, id="rates given"),
        pytest.param(0.9, 0.02, {"failure_rate": 0.9, "false_rate": 0.02}, 20, id="false failures"),
        pytest.param(1.0, 0.0, {"failure_rate": 1.0, "false_rate": 0.0}, 6, id="always"),
    ],
)
def test_bayes_is_right_as_often_as_it_says(rate: float, false: float, options: dict[str, float], most: int) -> None:
    results = [search_flaky(seed, rate, false, **options) for seed in range(30)]
    assert sum(right for right, _ in results) >= 29
    assert sum(runs for _, runs in results) / len(results) <= most


def test_bayes_takes_false_failures_for_what_they_are() -> None:
    engine = Bayes(Dag.line(8), failure_rate=0.95, false_rate=0.05)
    for version in range(8):
        for _ in range(6):
            engine.observe(version, version >= 5)
    engine.observe(2, True)
    assert engine.answer()[0][0] == 5


@pytest.mark.parametrize("wrong", [{"failure_rate": 1.5}, {"confidence": 1.0}, {"confidence": 0.2}])
def test_impossible_rates(wrong: dict[str, float]) -> None:
    with pytest.raises(CannotRun):
        Bayes(Dag.line(2), **wrong)  # type: ignore[arg-type]
