#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the TESTs of the made history where they have to pass and to fail, without `unikvm bisect`: by hand, and slow.

usage: tests/stack/bisect/verify.py [--all] [NAME...]

For each regression (or those named): the commit before, the bad one, the last one, and the two crossed pairs of halves.
--all: every TEST at every commit. Prints a line for each look; where it says WRONG the status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools/kvm"))

from stack.bisect.history import TREE, History, make_history
from stack.bisect.model import KERNEL_HALF, USER_HALF, Regression
from unikvm.errors import CannotRun
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import find_kernel, kernel_headers
from unikvm.observe.reasons import module_parameters

BUILD_SECONDS = 300
TEST_SECONDS = 30
REPEATS = 30  # of a flaky TEST: at one in five all pass once in 800 times
VENV = (TREE / "build/venv").resolve()
KERNEL = find_kernel()
CONFIG = HostConfig(kernel=KERNEL, init=init_binary())


def say(text: str) -> None:
    print(text, flush=True)


@dataclass
class Trees:
    """Worktrees of pairs of halves, each built once, by its own scripts."""

    history: History
    _built: dict[tuple[str, str], Path | None] = field(default_factory=dict)

    def get(self, user: str, kernel: str) -> Path | None:
        """The tree of `user` with the kernel half of `kernel`; None where it does not build."""
        if (user, kernel) not in self._built:
            tree = self.history.folder.parent / f"{user[:12]}-{kernel[:12]}"
            self._git("worktree", "add", "--quiet", "--detach", str(tree), user)
            if kernel != user:
                self._git("-C", str(tree), "checkout", "--quiet", kernel, "--", "kernel")
            (tree / "build").mkdir()
            (tree / "build/venv").symlink_to(VENV)
            # The whole build of a crossed pair would find that the header and what was generated from it differ.
            build = self._build if kernel == user else self._build_module
            self._built[user, kernel] = tree if build(tree) else None
        return self._built[user, kernel]

    def _git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.history.folder), *words], check=True, timeout=60)

    def _build(self, tree: Path) -> bool:
        # scripts/build compiles bytecode, too, and does not mind what it finds there.
        return self._run(tree, "scripts/build") and self._run(tree, "-m", "compileall", "-q", "tools/kvm/unikvm")

    def _build_module(self, tree: Path) -> bool:
        out = tree / "build" / KERNEL.release / "kernel"
        built = self._run(tree, "scripts/build-module", kernel_headers(KERNEL), str(out))
        return built and self._run(tree, "-m", "compileall", "-q", "tools/kvm/unikvm")

    def _run(self, tree: Path, *words: str) -> bool:
        command = [str(VENV / "bin/python3"), *words]
        done = subprocess.run(command, cwd=tree, capture_output=True, timeout=BUILD_SECONDS, check=False)
        return not done.returncode


def tests(tree: Path, regressions: list[Regression]) -> Iterator[tuple[Regression, int, str]]:
    """Run TESTs in one host VM with the halves of `tree`: each with its status and what it said."""
    module = tree / "build" / KERNEL.release / "kernel/unikvm.ko"
    path = f"{tree / 'scripts'}:{os.environ['PATH']}"
    with HostVm(CONFIG, say=say) as host:
        host.insmod(str(module), module_parameters(KERNEL))
        for regression in regressions:
            environment = {"PATH": path, "UNIKVM_TREE": str(tree)}
            done = host.exec(regression.test, cwd=str(TREE), env=environment, timeout=TEST_SECONDS)
            lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            yield regression, done.shell_status, lines[-1] if lines else ""


def failed(regression: Regression, status: int, text: str) -> bool:
    return status != 0 and (not regression.signature or re.search(regression.signature, text) is not None)


def look(trees: Trees, regression: Regression, where: str, user: str, kernel: str, bad: bool) -> bool:
    """Run the TEST at one pair, say what was seen, and whether it is what it should be."""
    tree = trees.get(user, kernel)
    if tree is None:
        say(f"  {where:<24} does not build")
        return False
    repeats = REPEATS if regression.rate < 1 else 1
    seen = list(tests(tree, [regression] * repeats))
    failures = [text for _, status, text in seen if failed(regression, status, text)]
    good = bool(failures) == bad and (bool(failures) or not any(status for _, status, _ in seen))
    count = f" in {len(failures)} of {repeats}" if repeats > 1 else ""
    verdict = "fails" if failures else f"passes ({seen[-1][1]})"
    say(f"  {where:<24} {verdict}{count}  {failures[0] if failures else ''}{'' if good else '  WRONG'}")
    return good


def verify(trees: Trees, regression: Regression) -> bool:
    """All looks at one regression."""
    say(f"{regression.name}: {regression.attribution}")
    new = regression.suspects[-1] if regression.suspects else regression.first_bad
    old = trees.history.commit((regression.suspects or (new,))[0]).parents[0]
    looks = [
        ("good", regression.good, regression.good, False),
        ("before", old, old, False),
        ("new kernel, old user half", old, new, regression.attribution == KERNEL_HALF),
        ("old kernel, new user half", new, old, regression.attribution == USER_HALF),
        ("at", new, new, True),
        ("bad", regression.bad, regression.bad, True),
    ]
    results = [look(trees, regression, *pair) for pair in looks]
    for sha in regression.suspects[:-1]:
        results.append(trees.get(sha, sha) is None)
        say(f"  {'inside':<24} {'does not build' if results[-1] else 'builds  WRONG'}")
    return all(results)


def contains(history: History, commit: str, ancestor: str) -> bool:
    command = ["git", "-C", str(history.folder), "merge-base", "--is-ancestor", ancestor, commit]
    return not subprocess.run(command, check=False, timeout=60).returncode


def verify_all(trees: Trees, regressions: list[Regression]) -> bool:
    """Every TEST at every commit that builds: each fails from its commit on to its last bad one, and nowhere else."""
    history = trees.history
    right = True
    regressions = sorted(regressions, key=lambda found: found.name == "lost-wakeup")  # its child stays for a while
    for made in history.commits:
        tree = trees.get(made.sha, made.sha)
        if tree is None:
            say(f"{made.sha[:12]} does not build  {made.subject}")
            continue
        wrong, seen = [], ""
        for regression, status, text in tests(tree, regressions):
            has = contains(history, made.sha, regression.first_bad) and contains(history, regression.bad, made.sha)
            is_bad = failed(regression, status, text)
            seen += "x" if is_bad else "-" if status else "."
            if has != is_bad and regression.rate == 1:
                wrong.append(f"{regression.name} {status} {text!r}")
        right = right and not wrong
        say(f"{made.sha[:12]} {seen} {made.subject}" + "".join(f"\n  WRONG: {line}" for line in wrong))
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the TESTs of the made history.")
    parser.add_argument("--all", action="store_true", help="every TEST at every commit")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of regressions (default: all)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unikvm-history-") as folder:
        try:
            history = make_history(Path(folder) / "repository", TREE)
            chosen = [found for found in history.regressions if not args.names or found.name in args.names]
            trees = Trees(history)
            if args.all:
                return 0 if verify_all(trees, chosen) else 1
            results = [verify(trees, regression) for regression in chosen]
            return 0 if all(results) else 1
        except CannotRun as error:
            print(f"verify: {error}", file=sys.stderr)
            return error.outcome


if __name__ == "__main__":
    raise SystemExit(main())
