# SPDX-License-Identifier: GPL-2.0-only
"""What is done with the results of jobs: the tests of a commit are taken as they are, those of a suite are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from unikvm.campaign.verdict import FAIL, SKIP
from unikvm.check.case import KNOWN, Case, beside_qemu, compared, confirmed
from unikvm.check.job import Job
from unikvm.check.tap import Group

Submit = Callable[[str, Job], object]  # of a role within the group, and its job
AFTER, BEFORE, QEMU, AGAIN = "after", "before", "qemu", "again"


@dataclass
class Tests(Group):
    """A commit, or a crossing of two. `job` None: there is nothing to run, and `cases` say why."""

    job: Job | None = None
    sha: str = ""  # of a commit of the range

    def start(self, submit: Submit) -> None:
        """Ask for what has to be run."""
        if self.job is None:
            self.over = True
        else:
            submit(AFTER, self.job)

    def take(self, _role: str, case: Case) -> None:
        """A result has come."""
        self.cases.append(case)

    def unchecked(self, case: Case) -> bool:
        """Whether a test was skipped that nobody wanted skipped. Of a crossing only an accident is one: halves that
        refuse each other are an answer."""
        planned = any(task.skip and task.name == case.name for task in self.job.tasks) if self.job else True
        return case.accident or bool(self.sha and case.verdict == SKIP and not planned)

    def ended(self, _role: str, error: str, _submit: Submit) -> None:
        """The job is over: what it did not come to is skipped, with the reason."""
        assert self.job is not None
        for task in self.job.tasks[len(self.cases) :]:
            self.cases.append(Case(task.name, SKIP, error or "it was not run"))
        self.over = True


@dataclass
class Suite(Group):
    """The same tests before the range and after it; `before` None: nothing that they depend on has changed, so what
    fails after has failed before. `qemu`: the same by QEMU on the same host."""

    after: Job | None = None
    before: Job | None = None
    qemu: Job | None = None
    _results: dict[str, dict[str, Case]] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _doubtful: dict[str, Case] = field(default_factory=dict)

    def start(self, submit: Submit) -> None:
        """Ask for what has to be run."""
        for role, job in ((BEFORE, self.before), (AFTER, self.after), (QEMU, self.qemu)):
            if job is not None:
                self._waiting.add(role)
                self._results[role] = {}
                submit(role, job)

    def unchecked(self, case: Case) -> bool:
        """Whether a test was skipped for an accident: suites skip much by themselves."""
        return case.accident

    def take(self, role: str, case: Case) -> None:
        """A result has come; the case is there when all that it is compared with is."""
        if role == AGAIN:
            self.cases.append(self._beside(confirmed(self._doubtful.pop(case.name), case)))
            return
        self._results[role][case.name] = case
        self._judge(case.name)

    def _judge(self, name: str) -> None:
        seen = {role: results.get(name) for role, results in self._results.items()}
        if any(case is None and role in self._waiting for role, case in seen.items()):
            return
        after = seen.get(AFTER)
        if after is None or name in self._doubtful or any(case.name == name for case in self.cases):
            return
        if self.before is not None:
            case = compared(seen.get(BEFORE), after)
        else:
            case = replace(after, verdict=KNOWN) if after.verdict == FAIL else after
        if case.verdict == FAIL:
            self._doubtful[name] = case
        else:
            self.cases.append(self._beside(case))

    def _beside(self, case: Case) -> Case:
        return beside_qemu(case, self._results.get(QEMU, {}).get(case.name))

    def ended(self, role: str, error: str, submit: Submit) -> None:
        """A job is over. After the last one, what has become worse is run once more."""
        self._waiting.discard(role)
        assert self.after is not None
        if role == AFTER:
            for task in self.after.tasks:
                self._results[AFTER].setdefault(task.name, Case(task.name, SKIP, error or "it was not run"))
        for task in self.after.tasks:
            self._judge(task.name)
        if self._waiting:
            return
        if role != AGAIN and self._doubtful:
            self._waiting.add(AGAIN)
            tasks = tuple(task for task in self.after.tasks if task.name in self._doubtful)
            submit(AGAIN, replace(self.after, tasks=tasks))
            return
        self.cases += [self._beside(case) for case in self._doubtful.values()]  # the second run did not come to them
        self._doubtful.clear()
        self.over = True
