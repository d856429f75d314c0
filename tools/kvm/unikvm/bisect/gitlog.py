# SPDX-License-Identifier: GPL-2.0-only
"""git's own bisect log: written, so that `git bisect replay` works with it, and read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from unikvm.bisect.session import Answer
from unikvm.bisect.store import Row, Settings
from unikvm.campaign.verdict import FAIL, PASS
from unikvm.errors import CannotRun

WORDS = {PASS: "good", FAIL: "bad"}


def written(
    settings: Settings,
    rows: Sequence[Row],
    judged: Callable[[Row], str],
    label: Callable[[str], str],
    answer: Answer | None,
) -> str:
    """The log of a campaign. Of one with a flaky failure only what was concluded: git takes a mark for the truth."""
    options = ["--first-parent"] if settings.first_parent else []
    ends = " ".join(f"'{word}'" for word in [*options, settings.bad, *settings.good])
    lines = [f"git bisect start {ends}"]
    marks = [(kind, commit) for kind, commit in settings.marks]
    marks += [("skip", commit) for commit in settings.skip]
    found = next((finding for finding in answer.findings if finding.axis == "commit"), None) if answer else None
    if not settings.flaky:
        kernel = found.new.kernel if found else settings.kernels[-1]
        known = {settings.bad, *settings.good}
        for row in rows:
            if row.user == row.half and row.user not in known and row.kernel == kernel:
                known.add(row.user)
                marks.append((WORDS.get(judged(row), "skip"), row.user))
    elif found and found.narrowed:
        marks += [("good", found.old.user), ("bad", found.first_bad)]
    for kind, commit in marks:
        lines += [f"# {kind}: {label(commit)}", f"git bisect {kind} {commit}"]
    if found and found.narrowed:
        lines.append(f"# first bad commit: {label(found.first_bad)}")
    return "\n".join(lines) + "\n"


def read(path: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Bad ends, good ends and marks of a log. CannotRun where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [shlex.split(line) for line in file if line.startswith("git bisect ")]
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot read the log {path}: {error}") from error
    if not lines:
        raise CannotRun(f"{path} is no log of git bisect")
    bad: list[str] = []
    good: list[str] = []
    marks: list[tuple[str, str]] = []
    for _, _, verb, *words in lines:
        if verb == "start":
            revisions = [word for word in words[: words.index("--")] if "--" in words] if "--" in words else words
            revisions = [word for word in revisions if not word.startswith("-")]
            bad, good = revisions[:1], revisions[1:]
        elif verb in ("good", "bad", "skip"):
            marks += [(verb, word) for word in words]
    # A start without ends is followed by their marks.
    if not bad:
        bad = [commit for kind, commit in marks if kind == "bad"][:1]
    if not good:
        good = [commit for kind, commit in marks if kind == "good"][:1]
    return bad, good, marks
