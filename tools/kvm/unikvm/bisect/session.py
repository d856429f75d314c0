# SPDX-License-Identifier: GPL-2.0-only
"""One bisection from its ends to its answer: verify the ends, search the axes, attribute.

Everything here is a function of the settings and of the results so far: going on after a kill is starting again with
the results that are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import log

from unikvm.bisect.attribution import Attribution, Parts, attribute, combinations_of
from unikvm.bisect.axes import Axis, CommitAxis, KernelAxis, LinuxAxis
from unikvm.bisect.flaky import Bayes
from unikvm.bisect.search import Exact
from unikvm.bisect.store import Settings
from unikvm.bisect.trials import Point, Tally, Trials, mixed
from unikvm.campaign.git import Repository
from unikvm.campaign.linux import PREFIX, for_people
from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.errors import CannotRun

GUESSED_RATE = 0.2  # of a flaky failure, until there is an estimate
GUESSED_FALSE_RATE = 0.005
RUNS_TO_DECIDE = 120  # of one point, at most
SHOWN = 8  # versions of a posterior

Say = Callable[[str], object]


@dataclass
class Finding:
    """What one axis gave. `suspects`: versions with probabilities, the likeliest first; one: the first bad version."""

    axis: str
    suspects: list[tuple[str, float]]
    labels: dict[str, str]
    old: Point
    new: Point
    narrowed: bool  # to one version, or in a flaky search to one that is likely enough

    @property
    def first_bad(self) -> str:
        """The version."""
        return self.suspects[0][0]


@dataclass
class Answer:
    """All that was found. `cells`: what each combination of parts at the boundary gave (None: it could not be run)."""

    findings: list[Finding]
    attribution: Attribution = field(default_factory=lambda: Attribution((), ()))
    parts: list[str] = field(default_factory=list)
    cells: dict[Parts, tuple[Point, Tally]] = field(default_factory=dict)
    rates: tuple[float, float] | None = None
    narrowed: bool = True  # to one version on each axis


class Session:
    """`say` gets lines for the user, `left` how far a search is: in words, and the runs that are left.

    `linux` is the Linux tree's repository, where host kernels are commits of it.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        trials: Trials,
        say: Say,
        left: Callable[[str, int], object],
        linux: Repository | None = None,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._trials = trials
        self._linux = linux
        self._say = say
        self._tell_left = left
        self._rates: tuple[float, float] | None = None

    def run(self) -> Answer:
        """Search. Raises CannotRun where the ends do not hold, or the results contradict each other."""
        settings = self._settings
        good = Point.of(settings.kernels[0], settings.good[0])
        bad = Point.of(settings.kernels[-1], settings.bad)
        self._verify(good, bad)
        findings = [self._search(axis) for axis in self._axes(good, bad)]
        answer = Answer(findings, rates=self._rates, narrowed=all(found.narrowed for found in findings))
        self._attribute(answer)
        return answer

    # The ends

    def _verify(self, good: Point, bad: Point) -> None:
        for point in (good, bad):
            self._say(f"the {'good' if point == good else 'bad'} end: {self._name(point)}")
        self._decide([bad], "bad end")
        self._decide([good], "good end")
        at_bad, at_good = self._verdict(bad), self._verdict(good)
        if (at_good, at_bad) == (FAIL, PASS):
            raise CannotRun("the test fails at the good end and passes at the bad end", hint="are they swapped?")
        for point, got, wanted, end in ((bad, at_bad, FAIL, "bad"), (good, at_good, PASS, "good")):
            if got == SKIP:
                raise CannotRun(
                    f"the test cannot be run at the {end} end {self._name(point)}: {self._trials.tally(point).skipped}"
                )
            if got != wanted:
                does = "passes" if got == PASS else "fails"
                hint = "a failure that comes and goes: --flaky" if end == "bad" else "an older --good may pass"
                raise CannotRun(f"the test {does} at the {end} end {self._name(point)}: nothing to find", hint=hint)

    def _name(self, point: Point) -> str:
        commit = self._repository.subject(point.user)
        return f"{commit} on {for_people(point.kernel)}" if len(self._settings.kernels) > 1 else commit

    # A verdict on single points

    def _verdict(self, point: Point) -> str:
        """What all runs of a point say; empty: not enough yet."""
        tally = self._trials.tally(point)
        if not self._settings.flaky or not (tally.failed or tally.passed):
            return tally.verdict
        bad, good = self._guess()
        evidence = tally.failed * log(bad / good) + tally.passed * log((1 - bad) / (1 - good))
        enough = log(self._settings.confidence / (1 - self._settings.confidence))
        if abs(evidence) < enough and tally.failed + tally.passed < RUNS_TO_DECIDE:
            return ""
        return FAIL if evidence > 0 else PASS

    def _guess(self) -> tuple[float, float]:
        """The failure rates of bad and good points, given, estimated or guessed."""
        settings = self._settings
        bad, good = self._rates or (GUESSED_RATE, GUESSED_FALSE_RATE)
        bad = settings.failure_rate if settings.failure_rate is not None else bad
        good = settings.false_rate if settings.false_rate is not None else good
        good = min(max(good, 1e-4), 0.9)
        return min(max(bad, good + 0.01), 1 - 1e-4), good

    def _decide(self, points: Iterable[Point], role: str) -> None:
        """Run each of `points` until it has a verdict, or cannot be run."""
        points = list(points)
        while undecided := [point for point in points if not self._verdict(point)]:
            if not self._settings.flaky:
                self._trials.run(undecided, role)
                continue
            for number in range(max(self._trials.slots, len(undecided))):
                self._trials.submit(undecided[number % len(undecided)], role)
            while self._trials.pending():
                self._trials.collect()

    # The axes

    def _axes(self, good: Point, bad: Point) -> list[Axis]:
        """What to search, and with what of the other axis held."""
        if good.kernel == bad.kernel:
            return [self._commits(good.kernel)]
        if self._trials.unchanged(Point.of("", good.user), Point.of("", bad.user)):
            return [self._kernels(bad.user)]
        new_kernel, new_tree = Point.of(bad.kernel, good.user), Point.of(good.kernel, bad.user)
        self._decide([new_kernel, new_tree], "corner")
        kernel, tree = self._verdict(new_kernel), self._verdict(new_tree)
        if SKIP in (kernel, tree):
            which = new_kernel if kernel == SKIP else new_tree
            raise CannotRun(
                f"{self._name(which)} cannot be run, so the axes cannot be told apart: "
                f"{self._trials.tally(which).skipped}",
                hint="give one axis",
            )
        axes: list[Axis] = []
        if tree == FAIL or kernel == PASS:
            axes.append(self._commits(good.kernel if tree == FAIL else bad.kernel))
        if kernel == FAIL or tree == PASS:
            axes.append(self._kernels(good.user if kernel == FAIL else bad.user))
        return axes

    def _kernels(self, commit: str) -> Axis:
        settings = self._settings
        if self._linux is None:
            return KernelAxis(settings.kernels, commit)
        good, bad = (name.removeprefix(PREFIX) for name in settings.kernels)
        commits = self._linux.range(bad, [good], first_parent=settings.first_parent)
        return LinuxAxis(self._linux, commits, commit)

    def _commits(self, kernel: str) -> CommitAxis:
        settings = self._settings
        commits = self._repository.range(settings.bad, settings.good, first_parent=settings.first_parent)

        def content(commit: str) -> str:
            return self._trials.key(Point.of("", commit))

        return CommitAxis(self._repository, commits, kernel, content, settings.good[0])

    # The search

    def _engine(self, axis: Axis) -> Exact | Bayes:
        settings = self._settings
        if not settings.flaky:
            return Exact(axis.dag)
        ends = self._trials.tally(Point.of(settings.kernels[0], settings.good[0]))
        return Bayes(
            axis.dag,
            failure_rate=settings.failure_rate,
            false_rate=settings.false_rate,
            confidence=settings.confidence,
            good_runs=(ends.failed, ends.passed),
        )

    def _search(self, axis: Axis) -> Finding:
        """The first bad version of one axis."""
        engine = self._engine(axis)
        skips = set(self._settings.skip) | {commit for kind, commit in self._settings.marks if kind == "skip"}
        taken: dict[int, Tally] = {}
        by_key: dict[str, int] = {}
        for version, name in enumerate(axis.versions):
            by_key.setdefault(self._trials.key(axis.point(version)), version)
            if name in skips:
                engine.skip(version)
            for kind, commit in self._settings.marks:
                if commit == name and kind in ("good", "bad"):
                    engine.observe(version, kind == "bad")
        runs = 0
        while True:
            self._take_in(axis, engine, taken, by_key)
            if engine.is_over():
                break
            if runs >= self._settings.max_runs:
                self._say(f"{runs} runs are over: this is as far as it got")
                break
            self._fill(axis, engine)
            if not self._trials.pending():
                break
            self._left(engine)
            runs += len(self._trials.collect())
        self._trials.drop()
        return self._finding(axis, engine)

    def _left(self, engine: Exact | Bayes) -> None:
        if isinstance(engine, Exact):
            what = f"{engine.suspects.bit_count()} suspects left"
        else:
            version, share = engine.answer()[0]
            what = f"likeliest so far with {share:.1%}: number {version + 1} of {len(engine.dag)}"
        self._tell_left(what, engine.runs_left())

    def _fill(self, axis: Axis, engine: Exact | Bayes) -> None:
        """Have as many runs under way as there is room for, each where its result tells most beside the others'."""
        versions = {axis.point(version): version for version in range(len(axis.versions))}
        under_way = [versions[point] for point in self._trials.pending() if point in versions]
        while len(self._trials.pending()) < self._trials.slots:
            version = engine.choose(under_way)
            if version is None:
                return
            under_way.append(version)
            self._trials.submit(axis.point(version), "search")

    def _take_in(self, axis: Axis, engine: Exact | Bayes, taken: dict[int, Tally], by_key: dict[str, int]) -> None:
        """Tell the engine what is new. Flaky: each run once, also where two versions are the same by content."""
        for version in range(len(axis.versions)):
            point = axis.point(version)
            if isinstance(engine, Bayes) and by_key[self._trials.key(point)] != version:
                continue
            now, before = self._trials.tally(point), taken.get(version, Tally())
            if isinstance(engine, Exact):
                if now.verdict in (PASS, FAIL):
                    engine.observe(version, now.verdict == FAIL)
            else:
                for _ in range(now.failed - before.failed):
                    engine.observe(version, True)
                for _ in range(now.passed - before.passed):
                    engine.observe(version, False)
            if now.verdict == SKIP:
                engine.skip(version)
            taken[version] = Tally(now.failed, now.passed, now.skipped)

    def _finding(self, axis: Axis, engine: Exact | Bayes) -> Finding:
        answer = engine.answer()
        if isinstance(engine, Bayes):
            self._rates = engine.rates()
            first, narrowed = answer[0][0], answer[0][1] >= engine.confidence
            answer = [pair for pair in answer[:SHOWN] if pair[1] >= 0.001]
        else:
            first, narrowed = answer[0][0], len(answer) == 1
        return Finding(
            axis.name,
            suspects=[(axis.versions[version], share) for version, share in answer],
            labels={axis.versions[version]: axis.label(version) for version, _ in answer},
            old=axis.before(first),
            new=axis.point(first if isinstance(engine, Bayes) else answer[-1][0]),
            narrowed=narrowed,
        )

    # Attribution

    def _attribute(self, answer: Answer) -> None:
        """Run each combination of old and new parts at the boundary."""
        old, new = _boundary(answer.findings)
        differ = self._trials.crossings(old, new)
        answer.parts = [part for part, does in differ.items() if does]
        points = {parts: mixed(old, new, parts) for parts in combinations_of(answer.parts)}
        self._decide(points.values(), "attribution")
        verdicts = {parts: self._verdict(point) for parts, point in points.items()}
        answer.cells = {parts: (point, self._trials.tally(point)) for parts, point in points.items()}
        answer.attribution = attribute(
            {parts: None if verdict == SKIP else verdict == FAIL for parts, verdict in verdicts.items()}
        )


def _boundary(findings: list[Finding]) -> tuple[Point, Point]:
    """The old and the new point around which the parts are combined, of one axis or of both."""
    commits = next((found for found in findings if found.axis == CommitAxis.name), None)
    kernels = next((found for found in findings if found.axis == KernelAxis.name), None)
    if commits and kernels:
        old = Point(kernels.old.kernel, commits.old.user, commits.old.half)
        return old, Point(kernels.new.kernel, commits.new.user, commits.new.half)
    only = commits or kernels
    assert only is not None
    return only.old, only.new
