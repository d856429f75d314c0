# SPDX-License-Identifier: GPL-2.0-only
"""The shells that guests are kept busy through, with this machine's own as the guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.loads import Shell, Spent, measure


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Shell("here", ["sh"])
    yield made
    made.close()


def test_a_command_is_timed_to_its_end(shell: Shell) -> None:
    assert shell.run("sleep 0.2").all > 0.2e9


def test_what_a_command_prints_is_not_taken_for_its_end(shell: Shell) -> None:
    assert shell.run("echo '@@3 0.'; head -c 300000 /dev/zero; sleep 0.1").all > 0.1e9


def test_a_command_that_fails_ends_the_bench(shell: Shell) -> None:
    with pytest.raises(SystemExit, match="failed with b'1'"):
        shell.run("false")


def test_a_guest_that_ends_is_told(shell: Shell) -> None:
    with pytest.raises(SystemExit, match="ended at 'exit 3'"):
        shell.run("exit 3")


def test_a_load_is_the_difference_of_many_and_few(shell: Shell) -> None:
    load = {"command": "sleep 0.1; for i in $(seq {n}); do sleep 0.01; done", "few": 1, "many": 11}
    assert 0.01e9 < measure(shell, load).all < 0.1e9


def test_a_load_without_a_number_is_prepared_and_measured_whole(shell: Shell) -> None:
    load = {"command": "$wait", "prepare": "wait='sleep 0.1'"}
    assert measure(shell, load).all > 0.1e9


def test_figures_are_per_request() -> None:
    assert Spent(1100, 60).per(Spent(100, 10), 10) == Spent(100, 5)
