# SPDX-License-Identifier: GPL-2.0-only
"""Causes from what the combinations of old and new parts gave."""

from __future__ import annotations

import pytest

from unikvm.bisect.attribution import attribute, combinations_of

K, U, H = "kernel half", "user half", "host kernel"


def test_combinations() -> None:
    assert combinations_of([K, U]) == [frozenset(), frozenset({K}), frozenset({U}), frozenset({K, U})]


@pytest.mark.parametrize(
    ("failing", "text"),
    [
        ([{K}, {K, U}], K),
        ([{U}, {K, U}], U),
        ([{K, U}], "interaction: kernel half and user half together"),
        ([{K}, {U}, {K, U}], "kernel half, or user half alone"),
        ([], "unknown"),
    ],
)
def test_two_parts(failing: list[set[str]], text: str) -> None:
    failed = {parts: set(parts) in failing for parts in combinations_of([K, U])}
    assert attribute(failed).text == text


def test_three_parts() -> None:
    failed = {parts: {H, K} <= parts for parts in combinations_of([H, K, U])}
    assert attribute(failed).causes == (frozenset({H, K}),)


def test_what_cannot_be_run_is_named() -> None:
    failed: dict[frozenset[str], bool | None] = {frozenset(): False, frozenset({K}): None, frozenset({K, U}): True}
    found = attribute(failed)
    assert found.causes == (frozenset({K, U}),)
    assert found.unknown == (frozenset({K}),)
