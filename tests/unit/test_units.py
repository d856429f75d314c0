# SPDX-License-Identifier: GPL-2.0-only
"""Sizes as people write them."""

from __future__ import annotations

import pytest

from unikvm.errors import CannotRun
from unikvm.units import GIB, KIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256", 256 * MIB),
        ("256M", 256 * MIB),
        ("2g", 2 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("64k", 64 * KIB),
        ("1GiB", GIB),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12q", "-1M", "0", "1e999G", "nanG"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(CannotRun, match="bad size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["256M", "4G", "513K", "1B"])
def test_format(text: str) -> None:
    sizes = {"256M": 256 * MIB, "4G": 4 * GIB, "513K": 513 * KIB, "1B": 1}
    assert format_size(sizes[text]) == text
