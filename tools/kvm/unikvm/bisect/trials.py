# SPDX-License-Identifier: GPL-2.0-only
"""Runs of the test at points of host kernel × kernel half × user half; what was run before, under another name or in an
interrupted campaign, is not run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace

from unikvm.bisect.store import Row, Store
from unikvm.campaign.git import Repository
from unikvm.campaign.runners import Runner
from unikvm.campaign.step import Job
from unikvm.campaign.verdict import FAIL, PASS, SKIP, Result
from unikvm.errors import CannotRun

LOST_STEPS = 5  # of one point, in a row, until the cluster is given up


@dataclass(frozen=True)
class Point:
    """What runs: a host kernel, and the commits that the halves are of."""

    kernel: str
    user: str
    half: str

    @classmethod
    def of(cls, kernel: str, commit: str) -> Point:
        """Both halves of one commit."""
        return cls(kernel, commit, commit)


@dataclass
class Tally:
    """Results of one point so far. `skipped`: the reason why it cannot be tested."""

    failed: int = 0
    passed: int = 0
    skipped: str = ""
    signatures: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Of all its runs together: a failure counts, whatever else there was."""
        return FAIL if self.failed else PASS if self.passed else SKIP if self.skipped else ""


class Trials:
    """Submits, collects, remembers. `told(row)` is called for each new result."""

    def __init__(self, store: Store, repository: Repository, runner: Runner, told: Callable[[Row], object]) -> None:
        self._store = store
        self._repository = repository
        self._runner = runner
        self._told = told
        self._keys: dict[Point, str] = {}
        self._contents: dict[str, tuple[str, str]] = {}
        self._signature = store.settings.signature
        self._pending: dict[Future[Result], tuple[Point, str]] = {}
        self._lost: dict[str, int] = {}
        self._tallies: dict[str, Tally] = {}
        # Of what an earlier process met, accidents may not happen again.
        self._done = [row for row in store.rows if not row.result.accident]
        for row in self._done:
            self._count(row)

    @property
    def slots(self) -> int:
        """How many runs go on at once."""
        return self._runner.slots

    # Names

    def _content(self, commit: str) -> tuple[str, str]:
        if commit not in self._contents:
            kernel_half, user_half = self._repository.content(commit)
            self._contents[commit] = (kernel_half if self._store.settings.kernel_half else "", user_half)
        return self._contents[commit]

    def key(self, point: Point) -> str:
        """What `point` is by content: where two have the same, a result of one holds for the other."""
        if point not in self._keys:
            self._keys[point] = f"{point.kernel} {self._content(point.half)[0]} {self._content(point.user)[1]}"
        return self._keys[point]

    # Results

    def tally(self, point: Point) -> Tally:
        """What `point` has given."""
        return self._tallies.get(self.key(point), Tally())

    def _count(self, row: Row) -> None:
        tally = self._tallies.setdefault(row.key, Tally())
        verdict, reason = self.judged(row)
        if verdict == SKIP:
            tally.skipped = reason
        else:
            tally.failed += verdict == FAIL
            tally.passed += verdict == PASS
            if verdict == FAIL and row.result.signature not in tally.signatures:
                tally.signatures.append(row.result.signature)

    def judged(self, row: Row) -> tuple[str, str]:
        """Verdict and reason, where only a failure with the sought signature is one."""
        result = row.result
        if result.verdict == FAIL and not self._is_sought(row):
            return SKIP, f"another failure: {result.signature}"
        return result.verdict, result.reason

    def _is_sought(self, row: Row) -> bool:
        """Whether a failure is like the one that is sought; `=TEXT`: has exactly that signature."""
        pattern, signature = self._signature, row.result.signature
        if not pattern or pattern == "bad":  # of the bad end, which has not been run yet
            return True
        if pattern.startswith("="):
            return signature == pattern[1:]
        return bool(re.search(pattern, signature) or re.search(pattern, self._store.log(row), re.MULTILINE))

    def seek(self, signature: str) -> None:
        """From now on only failures with this signature count."""
        self._signature = signature
        self._tallies.clear()
        for row in self._done:
            self._count(row)

    # Runs

    def submit(self, point: Point, role: str) -> None:
        """Start a run, or queue it."""
        settings = self._store.settings
        job = Job(
            repository=self._repository.path,
            folder=self._store.path("trees"),
            commit=self._repository.crossed(point.user, point.half),
            kernel=point.kernel,
            command=settings.command,
            cwd=settings.cwd,
            timeout=settings.timeout,
            shares=settings.shares,
            kernel_half=settings.kernel_half,
            guest_kernel=settings.guest_kernel,
            linux=settings.linux,
            linux_config=settings.linux_config,
        )
        self._pending[self._runner.submit(job)] = (point, role)

    def pending(self) -> list[Point]:
        """What runs or is queued."""
        return [point for point, _ in self._pending.values()]

    def collect(self) -> list[Row]:
        """Wait for a result, or several; they are kept and counted before this returns."""
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        rows = []
        for future in done:
            point, role = self._pending.pop(future)
            result = self._result(future, point, role)
            if result is None:
                continue
            number = len(self._store.rows) + 1
            name = f"{number:04}-{point.user[:12]}.txt"
            row = Row(number, point.kernel, point.user, point.half, self.key(point), role, name, result)
            self._store.append(row)
            self._done.append(row)
            self._count(row)
            self._told(row)
            rows.append(row)
        return rows

    def _result(self, future: Future[Result], point: Point, role: str) -> Result | None:
        """A run's result; None where its worker is lost and it was given to another."""
        try:
            result = future.result()
        except Exception as error:  # whatever a cluster has for a lost worker
            lost = self._lost[self.key(point)] = self._lost.get(self.key(point), 0) + 1
            if lost >= LOST_STEPS:
                raise CannotRun(f"a step was lost {lost} times: {error}", hint="--resume goes on") from error
            self.submit(point, role)
            return None
        if self._signature == "bad" and role == "bad end" and result.verdict == FAIL:
            self.seek(f"={result.signature}")
        return result

    def run(self, points: Iterable[Point], role: str) -> None:
        """Run each of `points` that has no result yet, to the end of all."""
        waiting = [point for point in points if not self.tally(point).verdict]
        keys: set[str] = set()
        for point in waiting:
            if self.key(point) not in keys:
                keys.add(self.key(point))
                self.submit(point, role)
        while self._pending:
            self.collect()

    def drop(self) -> None:
        """Forget the runs whose results are needed no more; they end by themselves, or are ended with the runner."""
        for future in self._pending:
            future.cancel()
        self._pending = {future: what for future, what in self._pending.items() if not future.cancelled()}

    def unchanged(self, old: Point, new: Point) -> bool:
        """Whether both are the same by content."""
        return self.key(old) == self.key(new)

    def crossings(self, old: Point, new: Point) -> dict[str, bool]:
        """The parts in which two points differ."""
        return {
            "host kernel": old.kernel != new.kernel,
            "kernel half": self._content(old.half)[0] != self._content(new.half)[0],
            "user half": self._content(old.user)[1] != self._content(new.user)[1],
        }


def mixed(old: Point, new: Point, parts: Iterable[str]) -> Point:
    """`old` with some parts of `new`."""
    names = {"host kernel": "kernel", "kernel half": "half", "user half": "user"}
    return replace(old, **{names[part]: getattr(new, names[part]) for part in parts})
