# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm bisect`: the first commit, or host kernel, at which TEST fails, and which half of the tree broke it.

TEST runs in a host VM with each commit's kernel half loaded and its `unikvm` on PATH; cwd is yours.
Its status: 0 good, 125 skip, all else bad (120 panic, 121 hang, 124 time-out ...).

examples:
  unikvm bisect --good v0.1 -- payload.elf
  unikvm bisect --good HEAD~30 -j 2 --html r.html -- unikvm run -- dmesg -l err
  unikvm bisect --host-kernels 6.1.0-47..6.1.0-56 -- ./test.sh
  unikvm bisect --resume                       after Ctrl-C, a crash or a full disk
status: 0 found; 1 several are left (the rest cannot be tested); 125 could not bisect.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from unikvm.cli.campaigns import checkout, pinned, resolved, write
from unikvm.cli.plan import say
from unikvm.cli.terminal import StatusLine
from unikvm.errors import CANNOT_RUN, CannotRun, UnikvmError

USAGE = "unikvm bisect --good REV [--bad REV] [OPTION...] -- TEST..."
SEVERAL_LEFT = 1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.bisect.session import Answer
    from unikvm.bisect.store import Row, Settings, Store
    from unikvm.bisect.trials import Trials
    from unikvm.campaign.git import Repository
    from unikvm.campaign.runners import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--good", metavar="REV", action="append", default=[], help="a commit at which TEST passes; repeatable")
    add("--bad", metavar="REV", default="HEAD", help="a commit at which TEST fails (default: HEAD)")
    add("--host-kernels", metavar="LIST", help="search host kernels: FIRST..LAST, releases, files; commas between")
    add("--linux", metavar="DIR", help="search host kernels in a Linux git tree, built there; with the next two")
    add("--linux-good", metavar="REV", help="a commit of it at which TEST passes")
    add("--linux-bad", metavar="REV", default="HEAD", help="a commit of it at which TEST fails (HEAD)")
    add("--linux-config", metavar="FILE", help="its .config (default: a minimal one for host VMs)")
    add("--host-kernel", metavar="SPEC", help="the one host kernel (default: Debian's)")
    add("--repository", metavar="DIR", default=".", help="this tree or a fork of it (default: here)")
    add("--first-parent", action="store_true", help="follow only the first parent of merges")
    add("--skip", metavar="REV", action="append", default=[], help="a commit that cannot be tested; repeatable")
    add("-j", "--jobs", metavar="N", type=int, default=1, help="runs at once (default: 1)")
    add("--scheduler", metavar="ADDR", help="run on the workers of a dask.distributed cluster, tcp://…")
    add("--timeout", metavar="S", type=float, default=300.0, help="for TEST: no end within S seconds is bad (300)")
    add("--share", metavar="DIR", action="append", default=[], help="directory that TEST may write to; repeatable")
    add("--no-kernel-half", action="store_true", help="leave it out: for host kernels without headers")
    add(
        "--signature",
        metavar="RE",
        help="only failures whose signature or output has this are bad; `bad`: as at the bad end",
    )
    add("--flaky", action="store_true", help="TEST fails now and then: Bayesian search")
    add("--failure-rate", metavar="P", type=float, help="how often it fails where it is bad (default: estimated)")
    add("--false-rate", metavar="P", type=float, help="how often it fails where it is good (default: estimated)")
    add("--confidence", metavar="P", type=float, default=0.99, help="with --flaky: when to stop (0.99)")
    add("--max-runs", metavar="N", type=int, default=500, help="of one search (500)")
    add("--resume", metavar="NAME", nargs="?", const="", help="go on with the last bisection, or that one")
    add("--log", metavar="NAME", nargs="?", const="", help="print its log, for git bisect replay")
    add("--replay", metavar="FILE", help="start from a log of git bisect")
    add("--dirty", action="store_true", help="go on though the checkout has changes, which no run would test")
    add("--json", metavar="FILE", help="write the answer and every run as JSON")
    add("--junit", metavar="FILE", help="likewise for a CI service")
    add("--html", metavar="FILE", help="likewise as a page with all logs (one is always kept with the bisection)")


def main(args: argparse.Namespace) -> int:
    from unikvm.bisect.store import Store, latest, new_name
    from unikvm.cli.terminal import end_on_signals

    end_on_signals()
    if args.log is not None:
        return _print_log(args.log or latest())
    if args.resume is not None:
        store = Store(args.resume or latest())
        say(f"going on with {store.name}: {len(store.rows)} runs are done")
    else:
        store = Store(new_name(), settings_of(args))
    try:
        return _work(args, store)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nunikvm: stopped; `unikvm bisect --resume {store.name}` goes on\n")
        return CANNOT_RUN  # no verdict for whoever called
    finally:
        store.close()


def settings_of(args: argparse.Namespace) -> Settings:
    """What was asked for, with every revision and kernel resolved. Raises CannotRun."""
    from unikvm.bisect import gitlog
    from unikvm.bisect.kernels import kernels_of
    from unikvm.bisect.store import Settings
    from unikvm.images.kernel import find_kernel

    if not args.command:
        raise CannotRun("no test", hint="unikvm bisect --good REV -- TEST")
    source = checkout(args.repository, dirty=args.dirty)
    good, bad = list(args.good), args.bad
    marks: list[tuple[str, str]] = []
    if args.replay:
        bads, good, marks = gitlog.read(args.replay)
        bad = bads[0] if bads else args.bad
    if not good and not args.host_kernels and not args.linux:
        raise CannotRun("no good end", hint="--good REV: a commit at which the test passes; or --host-kernels, --linux")
    bad_commit = resolved(source, bad, "--bad")
    goods = tuple(resolved(source, rev, "--good") for rev in good) or (bad_commit,)
    if good:
        check_ends(source, goods, bad_commit)
    kernels = kernels_of(args.host_kernels) if args.host_kernels else linux_ends(args)
    if len(kernels) < 2:
        kernels = (find_kernel(args.host_kernel or (kernels or (None,))[0], progress=say).release,)
    command = pinned(args.command)
    return Settings(
        source=source,
        good=goods,
        bad=bad_commit,
        kernels=kernels,
        command=command,
        guest_kernel=guest_kernel(command),
        cwd=os.getcwd(),
        first_parent=args.first_parent,
        skip=tuple(resolved(source, rev, "--skip") for rev in args.skip),
        marks=tuple((kind, resolved(source, rev, "the log's commit")) for kind, rev in marks),
        linux=os.path.abspath(args.linux) if args.linux else "",
        linux_config=os.path.abspath(args.linux_config) if args.linux_config else "",
        timeout=args.timeout,
        shares=tuple(os.path.abspath(share) for share in args.share),
        signature=args.signature,
        kernel_half=not args.no_kernel_half,
        flaky=args.flaky or args.failure_rate is not None,
        failure_rate=args.failure_rate,
        false_rate=args.false_rate,
        confidence=args.confidence,
        max_runs=args.max_runs,
    )


def linux_ends(args: argparse.Namespace) -> tuple[str, ...]:
    """The good and the bad commit of a Linux tree as host kernels; nothing where none was given."""
    from unikvm.campaign.linux import PREFIX

    if not args.linux:
        return ()
    if not args.linux_good:
        raise CannotRun("no good end in the Linux tree", hint="--linux-good REV")
    good = resolved(args.linux, args.linux_good, "--linux-good")
    bad = resolved(args.linux, args.linux_bad, "--linux-bad")
    check_ends(args.linux, (good,), bad, "--linux-")
    return (f"{PREFIX}{good}", f"{PREFIX}{bad}")


def check_ends(source: str, goods: tuple[str, ...], bad: str, prefix: str = "--") -> None:
    """The good ends must be in the bad one. `prefix` of the options that name them."""
    from unikvm.campaign.git import git

    for good in goods:
        if good == bad:
            raise CannotRun("the good end and the bad end are one commit")
        base = git(source, "merge-base", good, bad).strip()
        if base == bad:
            raise CannotRun(
                f"{prefix}bad {bad[:12]} is contained in {prefix}good {good[:12]}", hint="are they swapped?"
            )
        if base != good:
            raise CannotRun(
                f"{prefix}good {good[:12]} is not contained in {prefix}bad {bad[:12]}",
                hint=f"if the test passes where they fork, use {prefix}good {base[:12]}",
            )


def guest_kernel(command: tuple[str, ...]) -> str:
    """The package of the guest's kernel in a command that `pinned` gave, or an empty string."""
    from unikvm.images.packages import is_cached

    named = command[3] if command[:3] == ("unikvm", "run", "--kernel") else ""
    return named if named and is_cached(named) else ""


class Progress:
    """Lines for results, and a line that vanishes for what goes on."""

    def __init__(self, store: Store, repository: Repository, slots: int) -> None:
        self._repository = repository
        self.slots = slots
        self._kernels = len(store.settings.kernels)
        self._commits = len({store.settings.bad, *store.settings.good})
        self._seconds = [row.result.total for row in store.rows]
        self._subjects: dict[str, str] = {}
        self._line = StatusLine()
        self.trials: Trials | None = None

    def say(self, text: str) -> None:
        self._line.clear()
        say(text)

    def told(self, row: Row) -> None:
        """A result has come."""
        self._seconds.append(row.result.total)
        if row.user not in self._subjects:
            self._subjects[row.user] = self._repository.subject(row.user)
        what = self._subjects[row.user]
        if self._kernels > 1:
            from unikvm.campaign.linux import for_people

            kernel = for_people(row.kernel)
            what = f"{kernel}, {what}" if self._commits > 1 else kernel
        if row.half != row.user:
            what += f" with the kernel half of {row.half[:7]}"
        verdict, reason = self.trials.judged(row) if self.trials else (row.result.verdict, row.result.reason)
        words = {"pass": "good", "fail": "bad", "skip": "skipped"}[verdict]
        self._line.clear()
        say(f"[{row.number}] {what}: {words}{f': {reason}' if reason else ''} ({row.result.total:.1f} s)")

    def left(self, what: str, runs: int) -> None:
        """How far a search is."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        text = f"{what}; about {runs} run{'s' * (runs != 1)} and {runs * mean / self.slots:.0f} s to go"
        if self._line.shows:
            self._line.show(f"{text} ...")
        else:
            say(text)

    def step(self, line: str) -> None:
        """What a run is at: on a terminal, until the next line."""
        self._line.show(f"{line} ...")


def _runner(args: argparse.Namespace, store: Store, repository: Repository, progress: Progress) -> Runner:
    from unikvm.campaign.runners import ClusterRunner, LocalRunner

    if args.jobs < 1:
        raise CannotRun(f"{args.jobs} jobs are not possible")
    if not args.scheduler:
        return LocalRunner(args.jobs, progress.step)
    path = store.path("bundle")
    repository.bundle(path, [store.settings.bad, *store.settings.good])
    with open(path, "rb") as file:
        runner = ClusterRunner(args.scheduler, file.read())
    os.unlink(path)
    return runner


def _work(args: argparse.Namespace, store: Store) -> int:
    # The report too: a checkout that is edited meanwhile is not to decide how the bisection ends.
    from unikvm.bisect import gitlog, report  # noqa: F401
    from unikvm.bisect.session import Session
    from unikvm.bisect.trials import Trials
    from unikvm.campaign.git import Repository

    began = time.monotonic()
    os.makedirs(store.path("trees"), exist_ok=True)
    repository = Repository.borrow(store.path("repository.git"), store.settings.source)
    settings = store.settings
    linux = Repository.borrow(store.path("linux.git"), settings.linux) if settings.linux else None
    progress = Progress(store, repository, args.jobs)
    runner = _runner(args, store, repository, progress)
    progress.slots = runner.slots
    trials = progress.trials = Trials(store, repository, runner, progress.told)

    def log(answer: Answer | None) -> None:
        judged = [(row, trials.judged(row)[0]) for row in store.rows]
        verdicts = {row.number: verdict for row, verdict in judged}
        text = gitlog.written(store.settings, store.rows, lambda row: verdicts[row.number], repository.subject, answer)
        store.write_log(text)

    try:
        answer = Session(settings, repository, trials, progress.say, progress.left, linux).run()
        seconds = time.monotonic() - began
        log(answer)
        _report(args, answer, store, (repository, linux), seconds)
    except UnikvmError:
        log(None)
        raise
    finally:
        runner.close()
        store.tidy()
    return 0 if answer.narrowed else SEVERAL_LEFT


def _report(
    args: argparse.Namespace,
    answer: Answer,
    store: Store,
    repositories: tuple[Repository, Repository | None],
    seconds: float,
) -> None:
    """Print the answer, and write what was asked for."""
    import json

    from unikvm.bisect import report

    print(report.text(answer, store, *repositories), flush=True)
    data = report.summary(answer, store, seconds)
    shows = [report.shown(found, *repositories) for found in answer.findings if found.narrowed]
    settings = store.settings
    commits = repositories[0].range(settings.bad, settings.good, first_parent=settings.first_parent)
    page = report.html(data, store, answer, shows, [*settings.good, *(commit.sha for commit in commits)])
    files = {args.json: json.dumps(data, indent=1), args.html: page, store.path("report.html"): page}
    for path, content in files.items():
        if path:
            write(path, content.encode())
    if args.junit:
        write(args.junit, report.junit(answer, store))
    pairs = len({row.key for row in store.rows})
    say(f"{len(store.rows)} runs of {pairs} pairs of halves in {seconds:.0f} s; {store.path('report.html')}")


def _print_log(name: str) -> int:
    from unikvm.bisect.store import home

    try:
        with open(os.path.join(home(), name, "bisect.log"), encoding="utf-8") as file:
            sys.stdout.write(file.read())
    except OSError as error:
        raise CannotRun(f"no log of {name}: {error.strerror}") from error
    return 0
