# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm check`: builds, tests and KVM's own suites for a range of commits.

RANGE is A..B, or A for A..HEAD (default: what upstream has not, else the last commit). At each commit both halves are
built, its unit and style tests run here, TEST in a host VM. Suites run before and after: changes alone are failures.

examples:
  unikvm check
  unikvm check origin/main..topic -j 2 --junit r.xml -- unikvm run -- dmesg -l err
  unikvm check HEAD~3 --kvm-unit-tests ../kvm-unit-tests --selftests linux-source --only 'x86_64/*'
status: 0 nothing fails, 1 something does, 125 it could not be checked. KTAP on stdout.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

from unikvm.cli.campaigns import checkout, pinned, resolved, write
from unikvm.cli.plan import say
from unikvm.cli.terminal import StatusLine
from unikvm.errors import CANNOT_RUN, CannotRun

USAGE = "unikvm check [RANGE] [OPTION...] [-- TEST...]"
DEFAULT_TEST = ("unikvm", "run", "--", "true")
NPT = {"on": (True,), "off": (False,), "both": (True, False)}
SHELL = frozenset("|&;<>()$`*?[]{}~#!\n")  # in a --test: it is a shell's work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.check.session import Session
    from unikvm.check.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("range", nargs="?", metavar="RANGE", help="A..B, or A for A..HEAD")
    add(
        "--test",
        metavar="CMD",
        action="append",
        default=[],
        help="a test in the host VM; repeatable (unikvm run -- true)",
    )
    add("--here", metavar="CMD", action="append", help="one on this machine, in the worktree; repeatable ('': none)")
    add("--timeout", metavar="S", type=float, default=600.0, help="of each of these (600)")
    add("--kvm-unit-tests", metavar="DIR", help="a built tree of kvm-unit-tests: run by unikvm, and by QEMU beside it")
    add("--no-qemu", action="store_true", help="leave out QEMU")
    add("--selftests", metavar="DIR", help="KVM selftests of a Linux tree, or `linux-source`: Debian's")
    add("--only", metavar="PATTERN", action="append", default=[], help="suites' tests by name or group; repeatable")
    add(
        "--npt",
        metavar="HOW",
        choices=tuple(NPT),
        default="both",
        help="nested paging for suites: on, off, both (both)",
    )
    add("--suite-timeout", metavar="S", type=float, default=60.0, help="of each test of a suite (60)")
    add("--previous", metavar="REV", help="release for the ABI's test (last tag, else RANGE's base; '': none)")
    add("--host-kernel", metavar="SPEC", help="the host kernel (default: Debian's)")
    add("--kernel-before", metavar="SPEC", help="the one for suites before the range (default: the same)")
    add(
        "--linux",
        metavar="DIR",
        help="a Linux git tree: suites run on its commits before and after a range, built there",
    )
    add("--linux-range", metavar="A..B", default="HEAD~1..HEAD", help="that range (HEAD~1..HEAD)")
    add("--linux-config", metavar="FILE", help="its .config (default: a minimal one for host VMs)")
    add("--repository", metavar="DIR", default=".", help="this tree or a fork of it (default: here)")
    add("--share", metavar="DIR", action="append", default=[], help="directory that tests may write to; repeatable")
    add("--dirty", action="store_true", help="go on though the checkout has changes, which nothing would test")
    add("-j", "--jobs", metavar="N", type=int, default=1, help="commits and suites at once (1)")
    add("--tap", metavar="FILE", help="write the KTAP there as well")
    add("--json", metavar="FILE", help="write everything as JSON")
    add("--junit", metavar="FILE", help="likewise for a CI service")


def main(args: argparse.Namespace) -> int:
    from unikvm.campaign.git import Repository
    from unikvm.check.session import Session
    from unikvm.check.settings import new_folder, tidy
    from unikvm.cli.terminal import end_on_signals

    end_on_signals()
    if args.jobs < 1:
        raise CannotRun(f"{args.jobs} jobs are not possible")
    settings = settings_of(args)
    folder = new_folder()
    try:
        repository = Repository.borrow(os.path.join(folder, "repository.git"), settings.source)
        return work(args, Session(settings, repository, folder, say))
    finally:
        tidy(folder)


def settings_of(args: argparse.Namespace) -> Settings:
    """What was asked for, with every revision and kernel resolved. Raises CannotRun."""
    from unikvm.check.settings import Settings
    from unikvm.images.kernel import find_kernel

    source = checkout(args.repository, dirty=args.dirty)
    base, commits = commits_of(source, args.range)
    found = find_kernel(args.host_kernel, progress=say)
    kernel = absolute(args.host_kernel) if args.host_kernel else found.release
    kernel_before = absolute(args.kernel_before) if args.kernel_before else kernel
    if args.linux:
        kernel_before, kernel = linux_kernels(args)
    tests = [command_of(text) for text in args.test]
    if args.command or not tests:
        words = tuple(args.command or DEFAULT_TEST)
        tests.append((shlex.join(words), words))
    return Settings(
        source=source,
        base=base,
        commits=commits,
        kernel=kernel,
        release=found.release,
        kernel_before=kernel_before,
        linux=os.path.abspath(args.linux) if args.linux else "",
        linux_config=os.path.abspath(args.linux_config) if args.linux_config else "",
        host=tuple((name, pinned(list(command))) for name, command in tests),
        here=None if args.here is None else tuple(command_of(text) for text in args.here if text),
        cwd=os.getcwd(),
        previous=previous_of(source, args.previous, base, commits[-1]),
        unit_tests=args.kvm_unit_tests or "",
        selftests=args.selftests or "",
        only=tuple(args.only),
        nested_paging=NPT[args.npt],
        qemu=not args.no_qemu,
        timeout=args.timeout,
        suite_timeout=args.suite_timeout,
        shares=tuple(os.path.abspath(share) for share in args.share),
        jobs=args.jobs,
    )


def absolute(kernel: str) -> str:
    """A kernel's path, where it is one."""
    return os.path.abspath(kernel) if os.path.exists(kernel) else kernel


def linux_kernels(args: argparse.Namespace) -> tuple[str, str]:
    """The host kernels before and after a range of a Linux tree."""
    from unikvm.campaign.linux import PREFIX

    if args.host_kernel or args.kernel_before:
        raise CannotRun("the host kernel is named twice", hint="--linux, or --host-kernel and --kernel-before")
    base, commits = commits_of(args.linux, args.linux_range, "--linux-range")
    return f"{PREFIX}{base}", f"{PREFIX}{commits[-1]}"


def commits_of(source: str, text: str | None, what: str = "RANGE") -> tuple[str, tuple[str, ...]]:
    """The base of the range, and its commits, parents first."""
    from unikvm.campaign.git import git

    if text is None:
        text = "HEAD~1..HEAD"
        try:
            if git(source, "rev-list", "-n1", "@{upstream}..HEAD", "--"):
                text = "@{upstream}..HEAD"
        except CannotRun:
            pass  # no upstream, or no branch
    first, _, last = text.partition("..")
    if last.startswith("."):
        raise CannotRun(f"{what} {text} has three dots", hint="A..B: what is in B and not in A")
    head = resolved(source, last or "HEAD", f"{what}:")
    base = git(source, "merge-base", resolved(source, first or "HEAD", f"{what}:"), head).strip()
    commits = git(source, "rev-list", "--topo-order", "--reverse", f"{base}..{head}", "--").split()
    if not commits:
        raise CannotRun(f"{what} {text} has no commits", hint="A..B: what is in B and not in A")
    return base, tuple(commits)


def previous_of(source: str, asked: str | None, base: str, head: str) -> str:
    """The commit of the release before: as asked for, the last tag before the range's end, or the base."""
    from unikvm.campaign.git import git

    if asked is not None:
        return resolved(source, asked, "--previous") if asked else ""
    try:
        tag = git(source, "describe", "--tags", "--abbrev=0", f"{head}^").strip()
    except CannotRun:
        return base
    return resolved(source, tag, "the last tag")


def command_of(text: str) -> tuple[str, tuple[str, ...]]:
    """A --test as its name and its words, or the shell whose work it is."""
    if SHELL.intersection(text):
        return text, ("sh", "-c", text)
    try:
        return text, tuple(shlex.split(text))
    except ValueError as error:
        raise CannotRun(f"--test {text}: {error}") from None


class Output:
    """KTAP on stdout and in a file; on stderr one line that vanishes, of what goes on."""

    def __init__(self, path: str | None) -> None:
        self._line = StatusLine()
        self._last = ""
        try:
            self._file = open(path, "w", encoding="utf-8") if path else None
        except OSError as error:
            raise CannotRun(f"cannot write {path}: {error.strerror}") from error

    def tap(self, text: str) -> None:
        if text:
            self.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
        if text and self._file:
            self._file.write(text)
            self._file.flush()

    def goes_on(self, text: str) -> None:
        if self._line.shows:
            self._line.show(f"{text} ...")
        elif text != self._last:
            say(text)
        self._last = text

    def clear(self) -> None:
        self._line.clear()

    def close(self) -> None:
        self.clear()
        if self._file:
            self._file.close()


def work(args: argparse.Namespace, session: Session) -> int:
    """Plan, run, report."""
    from unikvm.campaign.verdict import FAIL, PASS
    from unikvm.check import report
    from unikvm.check.runner import LocalRunner
    from unikvm.check.tap import Writer

    began = time.monotonic()
    session.plan()
    output = Output(args.tap)
    runner = LocalRunner(args.jobs)
    try:
        session.run(runner, Writer(output.tap, session.groups).update, output.goes_on)
    finally:
        runner.close()
        output.close()
    seconds = time.monotonic() - began
    write_reports(args, session, seconds)
    say(report.last_line(session, seconds))
    return {PASS: 0, FAIL: 1}.get(session.verdict, CANNOT_RUN)


def write_reports(args: argparse.Namespace, session: Session, seconds: float) -> None:
    """What was asked for, and the JSON beside the logs."""
    import json

    from unikvm.check import report

    data = json.dumps(report.summary(session, seconds), indent=1).encode()
    files = {os.path.join(session.folder, "report.json"): data, args.json: data}
    if args.junit:
        files[args.junit] = report.junit(session)
    for path, content in files.items():
        if path:
            write(path, content)
