# SPDX-License-Identifier: GPL-2.0-only
"""The same for a failure that is there only now and then: Bayesian search.

A bad version fails with one rate, a good one with another (a false failure). A rate that is not given has a Beta prior
and is integrated out, so all runs together estimate it. The prior over versions is uniform.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp, lgamma, log, log2

from unikvm.bisect.search import GAIN_THAT_COUNTS, Dag, entropy, nearness
from unikvm.errors import CannotRun

CONFIDENCE = 0.99
BAD_PRIOR = (1.0, 3.0)  # what comes and goes fails rather seldom; a flat prior is too sure too soon
GOOD_PRIOR = (0.5, 50.0)  # false failures are rare: about one run in a hundred
MAX_CANDIDATES = 256  # that are weighed for one choice; more are thinned out evenly
MAX_CASES = 16  # combinations of results of the runs under way that are thought through


class Rate:
    """What is known of a failure rate before any run: `fixed`, or a Beta prior."""

    def __init__(self, fixed: float | None, prior: tuple[float, float]) -> None:
        if fixed is not None and not 0 <= fixed <= 1:
            raise CannotRun(f"a rate of {fixed:g} is not possible", hint="0 to 1")
        self.fixed = None if fixed is None else min(max(fixed, 1e-6), 1 - 1e-6)
        self._a, self._b = prior

    def mean(self, failed: int, passed: int) -> float:
        """The probability that the next run fails, after these."""
        if self.fixed is not None:
            return self.fixed
        return (self._a + failed) / (self._a + self._b + failed + passed)

    def evidence(self, failed: int, passed: int) -> float:
        """The logarithm of the probability of these results."""
        if self.fixed is not None:
            return failed * log(self.fixed) + passed * log(1 - self.fixed)
        a, b = self._a, self._b
        whole = lgamma(a + b) - lgamma(a) - lgamma(b)
        return whole + lgamma(a + failed) + lgamma(b + passed) - lgamma(a + b + failed + passed)


class Bayes:
    """Keeps the posterior over "version h is the first bad one". `good_runs`: failures and passes of the good ends."""

    def __init__(
        self,
        dag: Dag,
        *,
        failure_rate: float | None = None,
        false_rate: float | None = None,
        confidence: float = CONFIDENCE,
        good_runs: tuple[int, int] = (0, 0),
    ) -> None:
        if not 0.5 < confidence < 1:
            raise CannotRun(f"a confidence of {confidence:g} is not possible", hint="between 0.5 and 1")
        self.dag = dag
        self.bad, self.good = Rate(failure_rate, BAD_PRIOR), Rate(false_rate, GOOD_PRIOR)
        self.confidence = confidence
        self.skipped = 0
        self._runs: dict[int, tuple[int, int]] = {}  # of each version: failed, passed
        self._good_runs = good_runs
        self.weights: list[float] = []
        self._rates: list[tuple[float, float]] = []  # under each hypothesis: of bad and of good versions
        self._update()

    def observe(self, version: int, failed: bool) -> None:
        """Take in what a run at `version` gave."""
        before = self._runs.get(version, (0, 0))
        self._runs[version] = (before[0] + failed, before[1] + (not failed))
        self._update()

    def skip(self, version: int) -> None:
        """`version` cannot be tested."""
        self.skipped |= 1 << version

    def _update(self) -> None:
        logs, self._rates = [], []
        for suspect in range(len(self.dag)):
            failed, passed, false, true = 0, 0, *self._good_runs
            for version, (bad, good) in self._runs.items():
                if self.dag.upto[version] >> suspect & 1:
                    failed, passed = failed + bad, passed + good
                else:
                    false, true = false + bad, true + good
            logs.append(self.bad.evidence(failed, passed) + self.good.evidence(false, true))
            self._rates.append((self.bad.mean(failed, passed), self.good.mean(false, true)))
        top = max(logs)
        raw = [exp(value - top) for value in logs]
        total = sum(raw)
        self.weights = [value / total for value in raw]

    def _chances(self, version: int) -> list[float]:
        """The probability, under each hypothesis, that a run at `version` fails."""
        upto = self.dag.upto[version]
        return [bad if upto >> suspect & 1 else good for suspect, (bad, good) in enumerate(self._rates)]

    def choose(self, pending: Collection[int] = ()) -> int | None:
        """The version whose result is expected to tell most beside those of `pending`."""
        cases = [(1.0, self.weights)]
        for version in pending:
            cases = _split(cases, self._chances(version))
        candidates = [version for version in range(len(self.dag)) if not self.skipped >> version & 1]
        step = -(-len(candidates) // MAX_CANDIDATES)
        best, most = None, GAIN_THAT_COUNTS
        for version in candidates[::-step] if candidates else []:
            chances = self._chances(version)
            gain = sum(share * _gain(weights, chances) for share, weights in cases) * nearness(version, self.skipped)
            if gain > most:
                best, most = version, gain
        return best

    def answer(self) -> list[tuple[int, float]]:
        """The versions with their probabilities, the likeliest first."""
        return sorted(enumerate(self.weights), key=lambda pair: -pair[1])

    def is_over(self) -> bool:
        """Whether one version is likely enough; of versions that cannot be told apart by any test, all together."""
        top = max(range(len(self.weights)), key=self.weights.__getitem__)
        if self.weights[top] >= self.confidence:
            return True
        return self.choose() is None

    def rates(self) -> tuple[float, float]:
        """The failure rates of bad and of good versions, as estimated."""
        return (
            sum(weight * bad for weight, (bad, _) in zip(self.weights, self._rates, strict=True)),
            sum(weight * good for weight, (_, good) in zip(self.weights, self._rates, strict=True)),
        )

    def runs_left(self) -> int:
        """About how many runs are needed yet: what is to be known, by what the next run tells."""
        known = sum(-weight * log2(weight) for weight in self.weights if weight > 0)
        target = self.choose()
        gain = _gain(self.weights, self._chances(target)) if target is not None else 0.0
        return round(known / gain) if gain > GAIN_THAT_COUNTS else 0


def _gain(weights: Sequence[float], chances: Sequence[float]) -> float:
    """The mutual information of the hypothesis and a run's result, in bits."""
    fails, known = 0.0, 0.0
    of_chance: dict[float, float] = {}
    for weight, chance in zip(weights, chances, strict=True):
        if weight > 1e-12:
            fails += weight * chance
            if chance not in of_chance:
                of_chance[chance] = entropy(chance)
            known += weight * of_chance[chance]
    return entropy(fails) - known


def _split(cases: list[tuple[float, list[float]]], chances: Sequence[float]) -> list[tuple[float, list[float]]]:
    """Each case becomes two, by the result of a run that is under way."""
    parts = []
    for share, weights in cases:
        for result in (chances, [1 - chance for chance in chances]):
            joint = [weight * chance for weight, chance in zip(weights, result, strict=True)]
            total = sum(joint)
            if total > 1e-9:
                parts.append((share * total, [value / total for value in joint]))
    parts.sort(key=lambda part: -part[0])
    return parts[:MAX_CASES]
