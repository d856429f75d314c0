# SPDX-License-Identifier: GPL-2.0-only
"""Whole bisections over a real repository, by a rule in place of builds and host VMs (those: tests/stack/bisect)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from unikvm.bisect import gitlog, report
from unikvm.bisect.session import Answer, Session
from unikvm.bisect.store import Settings, Store
from unikvm.bisect.trials import Trials
from unikvm.campaign.git import Repository, git
from unikvm.campaign.step import Job
from unikvm.campaign.verdict import FAIL, PASS, SKIP, Result
from unikvm.errors import CannotRun
from unit.campaign.repo import commit

Rule = Callable[[str, str, str], str]  # of the host kernel and the contents of kernel/v and tools/v: the verdict
KERNELS = ("k1", "k2", "k3", "k4", "k5")
SIZE = 24


class RuleRunner:
    """Runs by a rule, at once."""

    def __init__(self, rule: Rule, slots: int = 1) -> None:
        self.slots = slots
        self.jobs: list[Job] = []
        self._rule = rule

    def submit(self, job: Job) -> Future[Result]:
        self.jobs.append(job)
        kernel, user = (git(job.repository, "show", f"{job.commit}:{name}").strip() for name in ("kernel/v", "tools/v"))
        word = self._rule(job.kernel, kernel, user)
        future: Future[Result] = Future()
        future.set_result(Result(word, {FAIL: "exit 1", SKIP: "no build"}.get(word, ""), 0, word))
        return future


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Commits of which the thirds change one half each; every third changes only documentation."""
    folder = tmp_path_factory.mktemp("history")
    git(str(folder), "init", "--quiet", "-b", "main")
    commits = [commit(folder, "0", kernel__v="0", tools__v="0", **{"scripts__build-module": "x"})]
    for number in range(1, SIZE):
        name = ("kernel__v", "tools__v", "Documentation__v")[number % 3]
        commits.append(commit(folder, f"change {number}", **{name: str(number)}))
    return folder, commits


Bisect = Callable[..., tuple[Answer, RuleRunner, Store]]


@pytest.fixture
def bisect(tmp_path: Path, history: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Bisect:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder, commits = history

    def run(rule: Rule, *, name: str = "one", slots: int = 1, **options: object) -> tuple[Answer, RuleRunner, Store]:
        fields = {"good": (commits[0],), "bad": commits[-1], "kernels": ("k1",), "command": ("t",), "cwd": "/"}
        new = not (tmp_path / "unikvm/bisect" / name).exists()
        settings = Settings(source=str(folder), **{**fields, **options})  # type: ignore[arg-type]
        store = Store(name, settings if new else None)
        try:
            repository = Repository.borrow(store.path("repository.git"), str(folder))
            runner = RuleRunner(rule, slots)
            trials = Trials(store, repository, runner, lambda _row: None)  # type: ignore[arg-type]
            linux = Repository(str(folder / ".git")) if store.settings.linux else None
            answer = Session(
                store.settings, repository, trials, lambda _text: None, lambda _what, _runs: None, linux
            ).run()
        finally:
            store.close()
        return answer, runner, store

    return run


def fails_if(condition: bool) -> str:
    return FAIL if condition else PASS


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("first", range(1, SIZE))
def test_every_first_bad_commit(bisect: Bisect, history: tuple[Path, list[str]], first: int, slots: int) -> None:
    if first % 3 == 2:
        pytest.skip("changes documentation alone: it breaks nothing")
    part = 0 if first % 3 == 0 else 1

    def rule(_host: str, kernel: str, user: str) -> str:
        return fails_if(int((kernel, user)[part]) >= first)

    answer, runner, _ = bisect(rule, slots=slots)
    assert answer.findings[0].first_bad == history[1][first]
    assert answer.attribution.text == ("kernel half", "user half")[part]
    assert len(runner.jobs) <= 2 + 5 * slots


def test_interaction(bisect: Bisect, history: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = history
    both = commit(folder, "both", kernel__v="100", tools__v="100")
    answer, _, _ = bisect(lambda _h, k, u: fails_if(k == u == "100"), bad=both)
    assert answer.findings[0].first_bad == both
    assert answer.attribution.text == "interaction: kernel half and user half together"
    git(str(folder), "reset", "--quiet", "--hard", commits[-1])


def test_a_range_without_builds(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    def rule(_host: str, kernel: str, user: str) -> str:
        return SKIP if 6 <= int(kernel) <= 9 else fails_if(int(user) >= 13)

    answer, _, store = bisect(rule)
    assert answer.findings[0].first_bad == history[1][13]
    assert any(row.result.verdict == SKIP for row in store.rows)


def test_only_skipped_ones_left(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    answer, _, store = bisect(lambda _h, k, _u: SKIP if 6 <= int(k) <= 9 else fails_if(int(k) >= 6))
    assert not answer.narrowed
    assert history[1][6] in [version for version, _ in answer.findings[0].suspects]
    assert "could be any of" in report.text(answer, store, Repository(store.path("repository.git")))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda _h, _k, _u: PASS, "passes at the bad end"),
        (lambda _h, _k, _u: FAIL, "fails at the good end"),
        (lambda _h, k, _u: fails_if(k == "0"), "swapped"),
        (lambda _h, _k, _u: SKIP, "cannot be run at the bad end"),
    ],
)
def test_ends_that_do_not_hold(bisect: Bisect, rule: Rule, message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        bisect(rule)


def test_a_failure_that_comes_and_goes_is_noticed(bisect: Bisect) -> None:
    with pytest.raises(CannotRun, match="--flaky"):
        bisect(lambda _h, k, u: fails_if(3 <= int(k) <= 9 or int(u) >= 22), slots=3)


def test_host_kernels(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    head = history[1][-1]
    answer, runner, _ = bisect(lambda h, _k, _u: fails_if(h >= "k4"), kernels=KERNELS, good=(head,))
    assert (answer.findings[0].axis, answer.findings[0].first_bad) == ("host kernel", "k4")
    assert answer.attribution.text == "host kernel"
    assert len(runner.jobs) <= 4


@pytest.mark.parametrize(
    ("rule", "found", "text"),
    [
        (lambda h, _k, _u: fails_if(h >= "k3"), ["k3"], "host kernel"),
        (lambda _h, k, _u: fails_if(int(k) >= 9), [9], "kernel half"),
        (
            lambda h, k, _u: fails_if(h >= "k3" and int(k) >= 9),
            [9, "k3"],
            "interaction: host kernel and kernel half together",
        ),
        (lambda h, _k, u: fails_if(h >= "k2" or int(u) >= 10), [10, "k2"], "host kernel, or user half alone"),
    ],
)
def test_two_axes(
    bisect: Bisect, history: tuple[Path, list[str]], rule: Rule, found: list[int | str], text: str
) -> None:
    answer, _, _ = bisect(rule, kernels=KERNELS)
    wanted = [history[1][one] if isinstance(one, int) else one for one in found]
    assert [finding.first_bad for finding in answer.findings] == wanted
    assert answer.attribution.text == text


def test_another_failure_is_skipped(
    bisect: Bisect, history: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sought one begins at 15; between 6 and 9 there is another."""

    def rule(_host: str, kernel: str, user: str) -> str:
        return FAIL if int(kernel) >= 15 else "another" if 6 <= int(kernel) <= 9 else PASS

    def submit(self: RuleRunner, job: Job) -> Future[Result]:
        future = original(self, job)
        result = future.result()
        if result.verdict == "another":
            result.verdict, result.signature = FAIL, "another"
        return future

    original = RuleRunner.submit
    monkeypatch.setattr(RuleRunner, "submit", submit)
    answer, _, _ = bisect(rule, signature="bad")
    assert answer.findings[0].first_bad == history[1][15]


def test_going_on_runs_nothing_twice(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    def rule(_host: str, kernel: str, _user: str) -> str:
        return fails_if(int(kernel) >= 12)

    _, first, store = bisect(rule)
    path = Path(store.path("results.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])  # killed while it wrote
        answer, again, _ = bisect(rule)
        assert answer.findings[0].first_bad == history[1][12]
        assert len(again.jobs) == len(first.jobs) - kept


def test_git_replays_the_log(bisect: Bisect, history: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = history
    answer, _, store = bisect(lambda _h, _k, u: fails_if(int(u) >= 13))
    verdicts = {row.number: row.result.verdict for row in store.rows}
    text = gitlog.written(store.settings, store.rows, lambda row: verdicts[row.number], str, answer)
    (tmp_path / "log").write_text(text)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(folder), str(clone)], check=True)
    done = subprocess.run(
        ["git", "bisect", "replay", str(tmp_path / "log")], cwd=clone, capture_output=True, text=True, check=True
    )
    assert f"{commits[13]} is the first bad commit" in done.stdout
    bad, good, marks = gitlog.read(str(tmp_path / "log"))
    assert (bad, good) == ([commits[-1]], [commits[0]])
    assert ("bad", commits[13]) in marks


def test_flaky(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    import random

    chance = random.Random(7)
    answer, _, store = bisect(
        lambda _h, k, _u: fails_if(int(k) >= 9 and chance.random() < 0.4), flaky=True, name="flaky"
    )
    assert answer.findings[0].first_bad == history[1][9]
    assert answer.attribution.text == "kernel half"
    assert answer.rates is not None
    assert 0.2 < answer.rates[0] < 0.6
    assert "failure rate" in report.text(answer, store, Repository(store.path("repository.git")))


def test_commits_of_a_linux_tree(bisect: Bisect, history: tuple[Path, list[str]]) -> None:
    """The made history plays the Linux tree as well."""
    folder, commits = history
    order = {commit: number for number, commit in enumerate(commits)}

    def rule(host: str, _kernel: str, _user: str) -> str:
        return fails_if(order[host.removeprefix("linux:")] >= 7)

    ends = (f"linux:{commits[0]}", f"linux:{commits[-1]}")
    answer, _, store = bisect(rule, kernels=ends, good=(commits[-1],), linux=str(folder))
    assert answer.findings[0].first_bad == f"linux:{commits[7]}"
    assert answer.attribution.text == "host kernel"
    said = report.text(answer, store, Repository(store.path("repository.git")), Repository(str(folder / ".git")))
    assert "change 7" in said
