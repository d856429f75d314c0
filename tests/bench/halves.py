# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm bisect` beside what a developer does without it: two bisects, over two repositories.

For some regressions of tests/stack/bisect/history.py the bisection is run for real. The other way is counted: the
history is split into a repository of kernel halves and one of user halves, and git bisect itself walks them with the
answers known. Nobody knows beforehand which half it is, so the kernel half comes first, with the user half at its bad
end: both ends are run, and where the good end fails too it was not the kernel half.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from stack.bisect.history import History, make_history
from stack.bisect.model import KERNEL_HALF, USER_HALF, Regression
from unikvm.campaign.git import Repository, git
from unikvm.images.artifacts import LAUNCHER

TREE = Path(__file__).resolve().parents[2]
NAMES = ("double-count", "boot-register", "slots")  # kernel half, user half, interaction


def by_unikvm(history: History, found: Regression, folder: Path) -> tuple[int, int, float]:
    """Runs, builds of a half, and seconds of a bisection, one run at a time and with nothing built before."""
    ends = ["--repository", str(history.folder), "--good", found.good, "--bad", found.bad]
    command = [LAUNCHER, "bisect", *ends, "--json", str(folder / "answer"), "--", *found.test]
    subprocess.run(command, check=True, capture_output=True, timeout=1800)
    answer = json.loads((folder / "answer").read_text())
    assert answer["findings"][0]["first_bad"] == found.first_bad
    repository = Repository(str(history.folder))
    halves = {repository.content(run["kernel_half"])[0] for run in answer["runs"]}
    halves |= {repository.content(run["user_half"])[1] for run in answer["runs"]}
    return len(answer["runs"]), len(halves), answer["seconds"]


def by_hand(history: History, found: Regression, folder: Path) -> tuple[int, int]:
    """Runs and builds of a half with two repositories and git bisect."""
    runs, builds = 0, 1  # the user half at its bad end
    for half in (KERNEL_HALF, USER_HALF):
        runs, builds = runs + 2, builds + 2  # both ends; of the second repository the bad end is known
        if half == USER_HALF:
            runs, builds = runs - 1, builds - 1
        elif found.attribution == USER_HALF:
            continue  # its good end fails: it was not the kernel half
        steps = _steps(history, found, half, folder)
        runs, builds = runs + steps, builds + steps
        if found.attribution == KERNEL_HALF:
            break  # and that the user half has no part in it nobody has shown
    return runs, builds


def _steps(history: History, found: Regression, half: str, folder: Path) -> int:
    """How many commits git bisect asks for in the repository of one half."""
    source = Repository(str(history.folder))
    at = 0 if half == KERNEL_HALF else 1
    last, count, first_bad = source.content(found.good)[at], 0, 0
    place = folder / f"{found.name}-{half.split()[0]}"
    place.mkdir()
    git(str(place), "init", "--quiet")
    for commit in [found.good, *(one.sha for one in source.range(found.bad, [found.good]))]:
        content = source.content(commit)[at]
        if commit == found.good or content != last:
            last, count = content, count + 1
            (place / "number").write_text(str(count))
            git(str(place), "add", "number")
            git(str(place), "commit", "--quiet", "-m", commit)
        if commit == found.first_bad:
            first_bad = count
    git(str(place), "bisect", "start", "HEAD", f"HEAD~{count - 1}")
    asked = folder / "asked"
    asked.write_text("")
    git(str(place), "bisect", "run", "sh", "-c", f"echo >> {asked}; test $(cat number) -lt {first_bad}")
    return len(asked.read_text())


def figures() -> dict[str, float]:
    """The figures, by name."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history = make_history(folder / "history", TREE)
        for regression in map(history.regression, NAMES):
            runs, builds, seconds = by_unikvm(history, regression, folder)
            hand_runs, hand_builds = by_hand(history, regression, folder)
            title = regression.attribution
            found |= {
                f"{title}: runs, unikvm": runs,
                f"{title}: runs, two repositories": hand_runs,
                f"{title}: builds of a half, unikvm": builds,
                f"{title}: builds of a half, two repositories": hand_builds,
                f"{title}: seconds, unikvm": seconds,
            }
    return found
