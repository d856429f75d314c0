# SPDX-License-Identifier: GPL-2.0-only
"""Which part broke it: from what each combination of old and new parts gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Parts = frozenset[str]  # those that are new; the others are old


@dataclass(frozen=True)
class Attribution:
    """`causes`: the least sets of new parts that fail. `unknown`: combinations that could not be run."""

    causes: tuple[Parts, ...]
    unknown: tuple[Parts, ...]

    @property
    def text(self) -> str:
        """In words."""
        if not self.causes:
            return "unknown"
        words = [" and ".join(sorted(cause)) + (" together" if len(cause) > 1 else "") for cause in self.causes]
        kind = "interaction: " if any(len(cause) > 1 for cause in self.causes) else ""
        return kind + (", or ".join(words) + (" alone" if len(words) > 1 and not kind else ""))


def combinations_of(parts: Sequence[str]) -> list[Parts]:
    """All sets of new parts, small ones first."""
    return [frozenset(some) for count in range(len(parts) + 1) for some in combinations(parts, count)]


def attribute(failed: Mapping[Parts, bool | None]) -> Attribution:
    """The least failing sets. `failed`: what each combination gave; None: it could not be run.

    A cause below which a combination is unknown may be too large; the caller says so.
    """
    causes: list[Parts] = []
    for parts in sorted(failed, key=len):
        if failed[parts] and not any(cause <= parts for cause in causes):
            causes.append(parts)
    return Attribution(tuple(causes), tuple(parts for parts in failed if failed[parts] is None))
