# SPDX-License-Identifier: GPL-2.0-only
"""Whole checks over a real repository, by a rule in place of builds and host VMs (those: tests/stack/check)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from junitparser import JUnitXml

from unikvm.campaign.git import Repository, git
from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check import report, unittests
from unikvm.check.case import KNOWN, Case
from unikvm.check.job import Job, Task
from unikvm.check.runner import News
from unikvm.check.session import Session
from unikvm.check.settings import Settings
from unikvm.check.tap import Writer
from unikvm.errors import CannotRun
from unit.campaign.repo import commit

# Of the contents of kernel/v and tools/v, and a task: the verdict. OSError: the job's process ends early.
Rule = Callable[[str, str, Task], str]
GUEST = ("unikvm run -- true", ("unikvm", "run", "--", "true"))


class RuleRunner:
    """Runs by a rule, in order of submission."""

    def __init__(self, rule: Rule) -> None:
        self.jobs: list[tuple[str, Job]] = []
        self._rule = rule
        self._at = 0

    def submit(self, key: str, job: Job) -> None:
        assert Job.load(job.dump()) == job
        self.jobs.append((key, job))

    def news(self) -> Iterator[News]:
        while self._at < len(self.jobs):
            key, job = self.jobs[self._at]
            self._at += 1
            kernel, user = (
                git(job.repository, "show", f"{job.commit}:{name}").strip() for name in ("kernel/v", "tools/v")
            )
            error = ""
            for task in job.tasks:
                yield News(key, say=task.name)
                try:
                    word = SKIP if task.skip else self._rule(kernel, user, task)
                except OSError as failure:
                    error = str(failure)
                    break
                reason = task.skip or {FAIL: "exit 1", SKIP: "cannot"}.get(word, "")
                yield News(key, case=Case(task.name, word, reason, output=f"{word}\n"))
            yield News(key, over=True, error=error)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A base and three commits: the kernel half, documentation, the user half."""
    folder = tmp_path_factory.mktemp("history")
    git(str(folder), "init", "--quiet", "-b", "main")
    start = {"kernel__v": "0", "tools__v": "0", "tests__unit__t": "0", "scripts__build-module": "x"}
    commits = [commit(folder, "0", **start)]
    commits += [
        commit(folder, f"change {n}", **{name: str(n)})
        for n, name in enumerate(("kernel__v", "Documentation__v", "tools__v"), 1)
    ]
    return folder, commits


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """Two tests in the layout of kvm-unit-tests."""
    (tmp_path / "kut/x86").mkdir(parents=True)
    (tmp_path / "kut/x86/unittests.cfg").write_text("[one]\nfile = t.flat\n[two]\nfile = t.flat\n")
    (tmp_path / "kut/x86/t.flat").touch()
    return str(tmp_path / "kut")


Checked = tuple[Session, RuleRunner, str]
Check = Callable[..., Checked]


@pytest.fixture
def check(tmp_path: Path, history: tuple[Path, list[str]]) -> Check:
    folder, commits = history

    def run(rule: Rule, **options: object) -> Checked:
        settings = Settings(str(folder), commits[0], tuple(commits[1:]), "k1", "6.1", "k1", (GUEST,))
        work = tmp_path / "work"
        for name in ("logs", "trees"):
            (work / name).mkdir(parents=True, exist_ok=True)
        repository = Repository.borrow(str(work / "repository.git"), str(folder))
        session = Session(replace(settings, **options), repository, str(work), lambda _text: None)  # type: ignore[arg-type]
        session.plan()
        runner, text = RuleRunner(rule), list[str]()
        session.run(runner, Writer(text.append, session.groups).update, lambda _text: None)
        assert all(group.over and len(group.cases) == group.planned for group in session.groups)
        return session, runner, "".join(text)

    return run


def passes(_kernel: str, _user: str, _task: Task) -> str:
    return PASS


def test_all_is_well(check: Check) -> None:
    session, runner, text = check(passes)
    assert session.verdict == PASS
    assert [len(job.tasks) for _, job in runner.jobs] == [4, 4, 4]
    assert "not ok" not in text
    assert "3 commits, 12 tests: 12 passed" in report.last_line(session, 1.0)
    assert runner.jobs[0][1].tasks[2].command[-1] == "tests/unit"  # there is no tests/style in this history


def test_each_commit_and_the_first_that_fails(check: Check, history: tuple[Path, list[str]]) -> None:
    """It goes on after a failure: one that a later commit mends is told as well."""
    session, _, text = check(lambda k, u, t: FAIL if (k, u) == ("1", "0") and "unit" in t.name else PASS)
    assert session.verdict == FAIL
    assert session.first_bad is not None
    assert session.first_bad.sha == history[1][1]
    assert [group.verdict for group in session.groups] == [FAIL, FAIL, PASS]
    assert text.count("\nnot ok") == 2
    line = report.last_line(session, 1.0)
    assert "2 failed" in line
    assert "(change 1): unit and style tests: exit 1" in line


def test_own_tests_in_place_of_the_default(check: Check) -> None:
    _, runner, _ = check(passes, here=(("a", ("./a", "b")),), host=(("c", ("sh", "-c", "c")), GUEST))
    assert [task.name for task in runner.jobs[0][1].tasks[2:]] == ["a", "c", GUEST[0]]
    _, runner, _ = check(passes, here=())
    assert [task.name for task in runner.jobs[0][1].tasks[2:]] == [GUEST[0]]


def suites(session: Session) -> dict[str, list[tuple[str, str]]]:
    return {g.name: [(c.verdict, c.says) for c in g.cases] for g in session.groups if not getattr(g, "sha", "")}


def test_a_suite_tells_changes_alone(check: Check, tree: str) -> None:
    def rule(kernel: str, _user: str, task: Task) -> str:
        if task.name == "one":
            return FAIL
        return FAIL if task.name == "two" and kernel == "1" and task.reads == "unikvm" else PASS

    session, runner, text = check(rule, unit_tests=tree, nested_paging=(True,))
    assert suites(session) == {
        "kvm-unit-tests with nested paging": [
            (KNOWN, "exit 1; failed before; QEMU fails it too: exit 1"),
            (FAIL, "exit 1; passed before; QEMU passes it on the same host"),
        ]
    }
    assert "  not ok 1 one # TODO known exit 1; failed before" in text
    assert "  not ok 2 two\n" in text
    assert [key.split()[1] for key, _ in runner.jobs[3:]] == ["before", "after", "qemu", "again"]
    assert [task.name for task in runner.jobs[-1][1].tasks] == ["two"]
    assert session.first_bad is None
    assert "kvm-unit-tests with nested paging: two: exit 1; passed before" in report.last_line(session, 1.0)


def test_a_failure_that_does_not_come_again(check: Check, tree: str) -> None:
    seen: list[str] = []

    def rule(kernel: str, _user: str, task: Task) -> str:
        if kernel == "1" and task.name == "two":
            seen.append(task.name)
        return FAIL if len(seen) == 1 and task.name == "two" and kernel == "1" else PASS

    session, _, _ = check(rule, unit_tests=tree, nested_paging=(False,), qemu=False)
    assert suites(session) == {
        "kvm-unit-tests with shadow paging": [
            (PASS, ""),
            (PASS, "failed once and passed once more: exit 1"),
        ]
    }
    assert session.verdict == PASS


def test_both_kinds_of_paging_and_the_memory_of_the_largest(check: Check, tree: str) -> None:
    with open(f"{tree}/x86/unittests.cfg", "a", encoding="utf-8") as file:
        file.write("extra_params = -m 4g\n")
    _, runner, _ = check(passes, unit_tests=tree)
    jobs = [job for _, job in runner.jobs[3:]]
    assert [job.nested_paging for job in jobs] == [True] * 3 + [False] * 3
    assert {job.memory for job in jobs} == {8 << 30}


def test_nothing_that_a_suite_depends_on_has_changed(check: Check, tree: str, history: tuple[Path, list[str]]) -> None:
    base, commits = history[1][1], (history[1][2],)
    session, runner, text = check(
        lambda _k, _u, t: FAIL if t.name == "one" else PASS,
        unit_tests=tree,
        nested_paging=(True,),
        base=base,
        commits=commits,
    )
    assert [key.split()[1] for key, _ in runner.jobs[1:]] == ["after", "qemu"]
    assert suites(session)["kvm-unit-tests with nested paging"][0][0] == KNOWN
    assert "# not run before: the range changes nothing that it depends on" in text
    _, runner, _ = check(passes, unit_tests=tree, nested_paging=(True,), base=base, commits=commits, kernel_before="k0")
    assert [(key.split()[1], job.kernel) for key, job in runner.jobs[1:]] == [
        ("before", "k0"),
        ("after", "k1"),
        ("qemu", "k1"),
    ]


def test_only_some(check: Check, tree: str) -> None:
    session, _, _ = check(passes, unit_tests=tree, only=("tw*",))
    assert all(len(cases) == 1 for cases in suites(session).values())
    session, _, _ = check(passes, unit_tests=tree, only=("none",))
    assert not suites(session)


def test_the_abi(check: Check, history: tuple[Path, list[str]]) -> None:
    def rule(kernel: str, user: str, task: Task) -> str:
        return SKIP if (kernel, user) == ("1", "0") and task.kind == "host" else PASS

    previous = history[1][0]
    session, runner, _ = check(rule, previous=previous)
    assert suites(session) == {
        f"ABI: user half of {previous[:12]}, new kernel half": [(SKIP, "cannot")],
        f"ABI: new user half, kernel half of {previous[:12]}": [(PASS, "")],
    }
    assert [len(job.tasks) for _, job in runner.jobs[3:]] == [1, 1]
    session, runner, _ = check(passes, previous=history[1][2])
    assert suites(session) == {
        f"ABI: user half of {history[1][2][:12]}, new kernel half": [(PASS, "")],
        f"ABI: new user half, kernel half of {history[1][2][:12]}": [(SKIP, "it has not changed")],
    }


def test_a_job_that_ends_early_is_no_pass(check: Check) -> None:
    def rule(_kernel: str, user: str, task: Task) -> str:
        if user == "3" and "unit" in task.name:
            raise OSError("no room")
        return PASS

    session, _, _ = check(rule)
    assert session.verdict == SKIP
    assert [case.verdict for case in session.groups[2].cases] == [PASS, PASS, SKIP, SKIP]
    assert "(change 3): no room" in report.last_line(session, 1.0)


def test_a_test_that_cannot_be_run_is_no_pass(check: Check) -> None:
    session, _, _ = check(lambda _k, u, t: SKIP if u == "3" and t.kind == "host" else PASS)
    assert session.verdict == SKIP
    assert len(session.errors) == 1
    assert "(change 3): unikvm run -- true: cannot" in report.last_line(session, 1.0)
    session, _, _ = check(lambda _k, u, t: SKIP if u == "3" and t.kind == "host" else FAIL)
    assert session.verdict == FAIL


def test_a_suite_whose_job_ends_early(check: Check, tree: str) -> None:
    def rule(kernel: str, _user: str, task: Task) -> str:
        if kernel == "1" and task.name == "two":
            raise OSError("no room")
        return PASS

    session, _, _ = check(rule, unit_tests=tree, nested_paging=(True,), qemu=False)
    assert suites(session)["kvm-unit-tests with nested paging"] == [(PASS, ""), (FAIL, "no room; passed before")]


def test_reports(check: Check, tree: str) -> None:
    session, _, _ = check(
        lambda k, _u, t: FAIL if k == "1" and t.name == "one" else PASS, unit_tests=tree, nested_paging=(True,)
    )
    session.groups[0].cases[0] = Case("noise", FAIL, "exit 1", output="\x1b[31mred\x00\n")
    data = json.loads(json.dumps(report.summary(session, 2.0)))
    assert data["verdict"] == FAIL
    assert data["counts"] == {PASS: 12, FAIL: 2, KNOWN: 0, SKIP: 0}
    assert Path(data["groups"][3]["cases"][1]["log"]).read_text().endswith("fail\n\n")
    (Path(session.folder) / "r.xml").write_bytes(report.junit(session))
    xml = JUnitXml.fromfile(str(Path(session.folder) / "r.xml"))
    assert (xml.tests, xml.failures) == (14, 2)
    assert [suite.name for suite in xml][3] == "kvm-unit-tests with nested paging"


def test_what_cannot_be_is_said_before_anything_runs(check: Check) -> None:
    with pytest.raises(CannotRun, match="no tree of kvm-unit-tests"):
        check(passes, unit_tests="/nowhere")
    with pytest.raises(CannotRun, match="no Linux tree"):
        check(passes, selftests="/nowhere")
    assert unittests.chosen([], []) == []
