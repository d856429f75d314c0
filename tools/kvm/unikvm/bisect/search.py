# SPDX-License-Identifier: GPL-2.0-only
"""Where to test next, and what the answers say, for a failure that is always there once it is there.

Versions are numbered so that parents come before their children; the last one is the bad end, and the good ends are
before all of them. Sets of versions are the bits of integers. A hypothesis is "version h is the first bad one": then
exactly h and its descendants fail.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import log2

from unikvm.errors import CannotRun

GAIN_THAT_COUNTS = 1e-9  # bits


class Dag:
    """Versions and their order. `upto[v]`: v and its ancestors."""

    def __init__(self, parents: Sequence[Sequence[int]]) -> None:
        self.upto: list[int] = []
        for version, above in enumerate(parents):
            mask = 1 << version
            for parent in above:
                mask |= self.upto[parent]
            self.upto.append(mask)

    def __len__(self) -> int:
        return len(self.upto)

    @classmethod
    def line(cls, count: int) -> Dag:
        """Versions of which each follows the one before it."""
        return cls([[version - 1] if version else [] for version in range(count)])


def bits(mask: int) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def entropy(share: float) -> float:
    """Of a yes or no that is yes with probability `share`, in bits."""
    return 0.0 if share <= 0 or share >= 1 else -share * log2(share) - (1 - share) * log2(1 - share)


class Contradiction(CannotRun):
    """No version can be the first bad one: what was seen does not fit together."""


class Exact:
    """Halves the suspects. `suspects`: versions that may be the first bad one."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.suspects = dag.upto[-1]
        self.skipped = 0

    def observe(self, version: int, failed: bool) -> None:
        """Take in what a run at `version` gave. Raises Contradiction."""
        left = self.suspects & (self.dag.upto[version] if failed else ~self.dag.upto[version])
        if not left:
            raise Contradiction(
                "the results contradict each other: a version fails, and one that contains it passes",
                hint="the failure is not always there: --flaky",
            )
        self.suspects = left

    def skip(self, version: int) -> None:
        """`version` cannot be tested."""
        self.skipped |= 1 << version

    def choose(self, pending: Collection[int] = ()) -> int | None:
        """The version whose result tells most beside those of `pending`; None when none tells anything."""
        cases = [self.suspects]
        for version in pending:
            upto = self.dag.upto[version]
            cases = [part for case in cases for part in (case & upto, case & ~upto) if part]
        total = self.suspects.bit_count()
        best, most = None, GAIN_THAT_COUNTS
        for version in bits(self.suspects & ~self.skipped):
            if version in pending:
                continue
            upto = self.dag.upto[version]
            gain = sum(
                case.bit_count() / total * entropy((case & upto).bit_count() / case.bit_count()) for case in cases
            )
            gain *= nearness(version, self.skipped)
            if gain > most:
                best, most = version, gain
        return best

    def answer(self) -> list[tuple[int, float]]:
        """The suspects with their probabilities, the likeliest first."""
        share = 1 / self.suspects.bit_count()
        return [(version, share) for version in bits(self.suspects)]

    def is_over(self) -> bool:
        """Whether one suspect is left."""
        return self.suspects.bit_count() == 1

    def runs_left(self) -> int:
        """About how many runs are needed yet."""
        return max(0, (self.suspects.bit_count() - 1).bit_length())


def nearness(version: int, skipped: int) -> float:
    """What a version is worth, 0 to 1, by its distance to the nearest skipped one: breakage comes in ranges."""
    if not skipped:
        return 1.0
    before = (skipped & ((1 << version) - 1)).bit_length()  # one more than the nearest below
    after = skipped >> version
    distances = [version - before + 1] if before else []
    if after:
        distances.append((after & -after).bit_length() - 1)
    distance = min(distances)
    return distance / (distance + 1)
