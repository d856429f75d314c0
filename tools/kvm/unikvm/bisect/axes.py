# SPDX-License-Identifier: GPL-2.0-only
"""The two axes of a search: this tree's commits, and host kernels. Versions that are the same by content are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unikvm.bisect.search import Dag
from unikvm.bisect.trials import Point
from unikvm.campaign.git import Commit, Repository
from unikvm.campaign.linux import PREFIX
from unikvm.errors import CannotRun


class Axis:
    """`versions`: commits or kernels that may be the first bad one, parents first; `dag`: their order."""

    name: str
    versions: list[str]
    dag: Dag

    def point(self, version: int) -> Point:
        """What a run at a version runs."""
        raise NotImplementedError

    def before(self, version: int) -> Point:
        """The last good point before a version that is the first bad one."""
        raise NotImplementedError

    def label(self, version: int) -> str:
        """For people."""
        return self.versions[version]


class CommitAxis(Axis):
    """The commits of a range, on one host kernel."""

    name = "commit"

    def __init__(
        self, repository: Repository, commits: Sequence[Commit], kernel: str, content: Callable[[str], str], good: str
    ) -> None:
        self._repository = repository
        self._kernel = kernel
        kept, parents = _without_twins(commits, content, content(good))
        if not kept:
            raise CannotRun(
                "the good end and the bad end have the same halves",
                hint="the range changes only tests or documentation, which no run of the halves can tell",
            )
        self.versions = [commit.sha for commit in kept]
        self._subjects = {commit.sha: commit.subject for commit in kept}
        self.dag = Dag(parents)

    def point(self, version: int) -> Point:
        return Point.of(self._kernel, self.versions[version])

    def before(self, version: int) -> Point:
        return Point.of(self._kernel, self._repository.parent(self.versions[version]))

    def label(self, version: int) -> str:
        sha = self.versions[version]
        return f"{sha[:12]} ({self._subjects[sha]})"


class KernelAxis(Axis):
    """Host kernels in a row, with one commit of this tree."""

    name = "host kernel"

    def __init__(self, kernels: Sequence[str], commit: str) -> None:
        self._commit = commit
        self._kernels = kernels
        self.versions = list(kernels[1:])
        self.dag = Dag.line(len(self.versions))

    def point(self, version: int) -> Point:
        return Point.of(self.versions[version], self._commit)

    def before(self, version: int) -> Point:
        return Point.of(self._kernels[version], self._commit)


class LinuxAxis(Axis):
    """The commits of a Linux tree, with one commit of this tree."""

    name = KernelAxis.name

    def __init__(self, repository: Repository, commits: Sequence[Commit], commit: str) -> None:
        self._repository = repository
        self._commit = commit
        numbers = {one.sha: number for number, one in enumerate(commits)}
        self.versions = [f"{PREFIX}{one.sha}" for one in commits]
        self._subjects = [one.subject for one in commits]
        self.dag = Dag([[numbers[parent] for parent in one.parents] for one in commits])

    def point(self, version: int) -> Point:
        return Point.of(self.versions[version], self._commit)

    def before(self, version: int) -> Point:
        parent = self._repository.parent(self.versions[version].removeprefix(PREFIX))
        return Point.of(f"{PREFIX}{parent}", self._commit)

    def label(self, version: int) -> str:
        return f"{self.versions[version].removeprefix(PREFIX)[:12]} ({self._subjects[version]})"


def _without_twins(
    commits: Sequence[Commit], content: Callable[[str], str], good: str
) -> tuple[list[Commit], list[list[int]]]:
    """The commits that differ from their parents, and the numbers of the parents that stand for theirs.

    A commit that is the same as its only parent gives the same results, so it cannot be the first bad one.
    """
    numbers: dict[str, int | None] = {}  # of each commit's stand-in; None: the good end
    kept: list[Commit] = []
    parents: list[list[int]] = []
    for commit in commits:
        above = [numbers[parent] for parent in commit.parents]
        mine = content(commit.sha)
        one = above[0] if len(set(above)) == 1 else None
        same_as_one = one is not None and len(set(above)) == 1 and content(kept[one].sha) == mine
        same_as_good = (not above or set(above) == {None}) and mine == good
        if same_as_one or same_as_good:
            numbers[commit.sha] = one if same_as_one else None
            continue
        numbers[commit.sha] = len(kept)
        kept.append(commit)
        parents.append([number for number in above if number is not None])
    last = numbers[commits[-1].sha] if commits else None
    if last is None:
        return [], []
    # Commits after the one that stands for the bad end are on branches that change nothing.
    return kept[: last + 1], parents[: last + 1]
