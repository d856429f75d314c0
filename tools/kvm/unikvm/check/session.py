# SPDX-License-Identifier: GPL-2.0-only
"""A check from its plan to its end: groups of tests, each with its jobs; results go to the groups as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from unikvm.campaign.git import Repository, git
from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check import selftests, settings, unittests
from unikvm.check.case import KNOWN, Case
from unikvm.check.groups import Suite, Tests
from unikvm.check.job import BUILD_KERNEL, BUILD_USER, Job, Task
from unikvm.check.runner import News, Runner
from unikvm.check.settings import Settings
from unikvm.check.tap import Group
from unikvm.units import GIB

Say = Callable[[str], object]
BUILDS = (Task("kernel half builds", BUILD_KERNEL), Task("user half builds", BUILD_USER))
PAGING = {True: "nested paging", False: "shadow paging"}


@dataclass
class Session:
    """`folder` is the check's own, with repository.git in it; `say` gets what goes on."""

    settings: Settings
    repository: Repository
    folder: str
    say: Say
    groups: list[Tests | Suite] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # jobs that ended early
    logs: int = 0

    def plan(self) -> None:
        """Make the groups: all that can be missing or wrong is known when this returns. CannotRun."""
        self.groups = [*self._commits(), *self._unit_tests(), *self._selftests(), *self._crossings()]

    def _job(self, commit: str, tasks: tuple[Task, ...], **fields: object) -> Job:
        asked = self.settings
        job = Job(
            repository=self.repository.path,
            folder=os.path.join(self.folder, "trees"),
            commit=commit,
            kernel=asked.kernel,
            tasks=tasks,
            shares=asked.shares,
            linux=asked.linux,
            linux_config=asked.linux_config,
        )
        return replace(job, **fields)  # type: ignore[arg-type]

    def _commits(self) -> Iterator[Tests]:
        in_host = settings.tests_in_host(self.settings)
        for commit in self.settings.commits:
            present = git(self.repository.path, "ls-tree", "--name-only", commit, "--", *settings.UNIT_TESTS).split()
            tasks = (*BUILDS, *settings.tests_here(self.settings, tuple(present)), *in_host)
            yield Tests(self.repository.subject(commit), len(tasks), job=self._job(commit, tasks), sha=commit)

    # Suites

    def _suite(self, name: str, tasks: list[Task], parts: tuple[int, ...], **fields: object) -> Suite:
        """Of a suite that depends on these parts of content(): the kernel half, the user half."""
        asked = self.settings
        base, head = (self.repository.content(commit) for commit in (asked.base, asked.head))
        after = self._job(asked.head, tuple(tasks), **fields)
        before = self._job(asked.base, tuple(tasks), **{**fields, "kernel": asked.kernel_before})
        if asked.kernel == asked.kernel_before and all(base[part] == head[part] for part in parts):
            return Suite(
                name, len(tasks), after=after, note="not run before: the range changes nothing that it depends on"
            )
        return Suite(name, len(tasks), after=after, before=before)

    def _unit_tests(self) -> Iterator[Suite]:
        asked = self.settings
        if not asked.unit_tests:
            return
        folder = os.path.abspath(asked.unit_tests)
        tests = unittests.chosen(unittests.read(folder), asked.only)
        memory = 2 * GIB if unittests.most_memory(tests) <= GIB else 8 * GIB
        for nested in asked.nested_paging if tests else ():
            run, by_qemu = (unittests.tasks(folder, tests, asked.suite_timeout, qemu=qemu) for qemu in (False, True))
            name = f"kvm-unit-tests with {PAGING[nested]}"
            suite = self._suite(name, run, (0, 1), nested_paging=nested, memory=memory)
            if asked.qemu and suite.after is not None:
                suite.qemu = replace(suite.after, tasks=tuple(by_qemu))
            yield suite

    def _selftests(self) -> Iterator[Suite]:
        asked = self.settings
        if not asked.selftests:
            return
        found = selftests.programs(asked.selftests, asked.release, asked.jobs, self.say)
        tasks = selftests.tasks(found, asked.only, asked.suite_timeout)
        for nested in asked.nested_paging if tasks else ():
            name = f"KVM selftests with {PAGING[nested]}"
            yield self._suite(name, tasks, (0,), nested_paging=nested, memory=selftests.MEMORY)

    # The ABI

    def _crossings(self) -> Iterator[Tests]:
        asked = self.settings
        if not asked.previous:
            return
        old, new = (self.repository.content(commit) for commit in (asked.previous, asked.head))
        tasks = tuple(settings.tests_in_host(asked))
        short = asked.previous[:12]
        for user, half, same, name in (
            (asked.previous, asked.head, old[1] == new[1], f"ABI: user half of {short}, new kernel half"),
            (asked.head, asked.previous, old[0] == new[0], f"ABI: new user half, kernel half of {short}"),
        ):
            if same:
                what = "user half" if user == asked.previous else "kernel half"
                yield Tests(name, 1, [Case(what, SKIP, "it has not changed")])
            else:
                yield Tests(name, len(tasks), job=self._job(self.repository.crossed(user, half), tasks))

    # At work

    def run(self, runner: Runner, changed: Callable[[], object], goes_on: Callable[[str], object]) -> None:
        """Run all to the end. `changed` is called when results have come, `goes_on` with what is at work."""
        for number, group in enumerate(self.groups):
            group.start(lambda role, job, number=number: runner.submit(f"{number} {role}", job))  # type: ignore[misc]
        changed()
        for news in runner.news():
            self._hear(news, runner, goes_on)
            changed()

    def _hear(self, news: News, runner: Runner, goes_on: Callable[[str], object]) -> None:
        number, _, role = news.key.partition(" ")
        group = self.groups[int(number)]
        if news.say:
            name = group.name.partition(" (")[0]  # of a commit without its subject
            goes_on(f"{name}{'' if isinstance(group, Tests) else f', {role}'}: {news.say}")
        if news.case:
            group.take(role, self._logged(group, role, news.case))
        if news.over:
            if news.error:
                self.broken.append(f"{group.name}: {news.error}")
            group.ended(role, news.error, lambda role, job: runner.submit(f"{number} {role}", job))

    def _logged(self, group: Group, role: str, case: Case) -> Case:
        """Put the output of a test into a file of its own."""
        if not case.output:
            return case
        self.logs += 1
        words = re.sub(r"[^\w.-]+", "-", f"{group.name.split()[0]}-{role}-{case.name}")[:60]
        path = os.path.join(self.folder, "logs", f"{self.logs:04}-{words}.txt")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{group.name}: {case.name} ({role})\n{case.verdict}: {case.says}\n\n{case.output}\n")
        return replace(case, log=path)

    # The answer

    @property
    def cases(self) -> list[Case]:
        """Of all groups."""
        return [case for group in self.groups for case in group.cases]

    @property
    def errors(self) -> list[str]:
        """What was to be checked and could not be."""
        found = list(self.broken)
        for group in self.groups:
            found += [f"{group.name}: {case.name}: {case.reason}" for case in group.cases if group.unchecked(case)]
        return found

    @property
    def verdict(self) -> str:
        """Of the whole: skip where something that was to be run could not be."""
        verdicts = {case.verdict for case in self.cases}
        if FAIL in verdicts:
            return FAIL
        return PASS if verdicts & {PASS, KNOWN} and not self.errors else SKIP

    @property
    def first_bad(self) -> Tests | None:
        """The first commit of the range that fails."""
        for group in self.groups:
            if isinstance(group, Tests) and group.sha and group.verdict == FAIL:
                return group
        return None
