#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes the test repository of `unikvm bisect`: this tree, some forty commits on top, regressions of each kind.

usage: tests/stack/bisect/history.py DIR

DIR must not exist. Prints the commits and the regressions. The same tree gives the same SHAs, anywhere and at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stack.bisect import harmless, seeded
from stack.bisect.model import Commit, Edit, Merge, Regression, Seed

TREE = Path(__file__).resolve().parents[3]
CASES = Path(__file__).resolve().with_name("cases")
WHO = "A Developer <developer@unikvm.example>"
BEGAN = 1_700_000_000  # seconds since the epoch; each commit is a minute later
BEFORE = "before "  # in a Seed: the parent of the commit named behind it

SCRIPT: tuple[Commit | Merge, ...] = (
    *harmless.START,
    seeded.DOUBLE_COUNT,
    *harmless.COUNTER,
    seeded.BOOT_REGISTER,
    *harmless.NAMES,
    seeded.RTC_CRASH,
    *harmless.MESSAGES,
    seeded.INTERACTION_SLOTS,
    seeded.RTC_CRASH_FIX,
    *harmless.WARNINGS,
    seeded.LOST_WAKEUP,
    *harmless.ORDER,
    seeded.KERNEL_BREAK,
    *harmless.UNBUILT,
    seeded.KERNEL_FIX,
    seeded.GUEST_TIME,
    Merge(
        "Merge branch 'serial'",
        side=(*harmless.SIDE, seeded.LOST_INTERRUPT, *harmless.SIDE_END),
        main=harmless.MEANWHILE,
    ),
    seeded.FLAKY,
    seeded.PYTHON_BREAK,
    harmless.UNREADABLE[0],
    seeded.TRIPLE_FAULT,
    harmless.UNREADABLE[1],
    seeded.PYTHON_FIX,
    harmless.WORDS[0],
    seeded.LEAK,
    Merge("Merge branch 'pages'", side=harmless.PAGES, main=harmless.WORDS[1:]),
    seeded.RTC_CPUS,
    *harmless.LAST,
)


class EditError(Exception):
    """The tree has changed so that an edit does not fit any more: mend the edit."""


@dataclass(frozen=True, slots=True)
class Made:
    """A commit of the history."""

    sha: str
    parents: tuple[str, ...]
    subject: str
    name: str


@dataclass(frozen=True, slots=True)
class History:
    """`commits` in the order in which they were made: the root first, the tip last."""

    folder: Path
    commits: tuple[Made, ...]
    regressions: tuple[Regression, ...]

    @property
    def tip(self) -> str:
        return self.commits[-1].sha

    def commit(self, name: str) -> Made:
        """By its SHA or its name; KeyError where there is none."""
        for made in self.commits:
            if name in (made.sha, made.name):
                return made
        raise KeyError(name)

    def regression(self, name: str) -> Regression:
        return next(found for found in self.regressions if found.name == name)


class _Importer:
    """Writes the stream for git fast-import. Commits are numbered from 1, which are their marks."""

    def __init__(self) -> None:
        self.stream = bytearray()
        self.made: list[tuple[str, str, tuple[int, ...]]] = []  # subject, name, parents

    def commit(self, subject: str, name: str, parents: tuple[int, ...], files: dict[str, tuple[str, bytes]]) -> int:
        """`files`: mode and content of those that differ from the first parent. Returns the commit's number."""
        self.made.append((subject, name, parents))
        number = len(self.made)
        date = f"{BEGAN + 60 * number} +0000"
        self._line("commit refs/heads/main" if parents else "reset refs/heads/main\ncommit refs/heads/main")
        self._line(f"mark :{number}\nauthor {WHO} {date}\ncommitter {WHO} {date}")
        self._data(f"{subject}\n".encode())
        for word, parent in zip(("from", "merge"), parents, strict=False):
            self._line(f"{word} :{parent}")
        for path, (mode, content) in sorted(files.items()):
            self._line(f"M {mode} inline {path}")
            self._data(content)
        return number

    def _line(self, text: str) -> None:
        self.stream += text.encode() + b"\n"

    def _data(self, data: bytes) -> None:
        self._line(f"data {len(data)}")
        self.stream += data + b"\n"


class _Writer:
    """Applies the script to the files and hands each commit to the importer."""

    def __init__(self, files: dict[str, tuple[str, bytes]]) -> None:
        self.importer = _Importer()
        self._files = files
        self._tip = self.importer.commit("Import unikvm", "root", (), files)

    def run(self, script: tuple[Commit | Merge, ...]) -> None:
        for step in script:
            if isinstance(step, Merge):
                self._merge(step)
            else:
                self._tip = self.importer.commit(step.subject, step.name, (self._tip,), self._apply(step))

    def _merge(self, merge: Merge) -> None:
        """The side's edits are made twice: on its own branch, and on top of the main one for the merge."""
        fork, before = self._tip, dict(self._files)
        self.run(merge.side)
        side, self._files, self._tip = self._tip, before, fork
        self.run(merge.main)
        changed: dict[str, tuple[str, bytes]] = {}
        for commit in merge.side:
            changed |= self._apply(commit)
        self._tip = self.importer.commit(merge.subject, "", (self._tip, side), changed)

    def _apply(self, commit: Commit) -> dict[str, tuple[str, bytes]]:
        changed = {}
        for edit in commit.edits:
            changed[edit.path] = self._files[edit.path] = self._edited(edit, commit.subject)
        return changed

    def _edited(self, edit: Edit, subject: str) -> tuple[str, bytes]:
        if not edit.old:
            if edit.path in self._files:
                raise EditError(f"{subject}: {edit.path} is there already")
            return "100644", edit.new.encode()
        mode, content = self._files.get(edit.path, ("", b""))
        count = content.count(edit.old.encode())
        if count != 1:
            raise EditError(f"{subject}: {edit.path} has {count} times, not once: {edit.old!r}")
        return mode, content.replace(edit.old.encode(), edit.new.encode())


def _git(folder: Path, *words: str, stdin: bytes = b"") -> str:
    """Git without what this machine or user has set up for it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *words]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"git {words[0]}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode()


def _read_tree(tree: Path) -> dict[str, tuple[str, bytes]]:
    """Mode and content of the tracked files as they lie there."""
    found = {}
    for name in _git(tree, "ls-files", "-z").split("\0"):
        path = tree / name
        if path.is_symlink():
            found[name] = ("120000", os.fsencode(path.readlink()))
        elif path.is_file():
            found[name] = ("100755" if path.stat().st_mode & 0o100 else "100644", path.read_bytes())
    return found


def _payloads(tree: Path) -> Path:
    """Where the build of `tree` has its payloads."""
    built = max(tree.glob("build/*/tests/payloads/hello.elf"), key=lambda path: path.stat().st_mtime, default=None)
    if built is None:
        raise FileNotFoundError(f"{tree}: no payloads: `make build` builds them")
    return built.parent


def _regression(seed: Seed, commits: tuple[Made, ...], payloads: Path) -> Regression:
    by_name = {made.name: made for made in commits if made.name} | {"tip": commits[-1]}

    def sha(name: str) -> str:
        return by_name[name.removeprefix(BEFORE)].parents[0] if name.startswith(BEFORE) else by_name[name].sha

    program = (sys.executable, "-S") if seed.case.endswith(".py") else ("sh",)
    suspects: tuple[str, ...] = ()
    if seed.suspects:
        order = [made.sha for made in commits]
        first, last = (order.index(sha(name)) for name in seed.suspects)
        suspects = tuple(order[first : last + 1])
    return Regression(
        seed.name,
        seed.attribution,
        seed.what,
        good=sha(seed.good),
        bad=sha(seed.bad),
        first_bad=sha(seed.first_bad),
        test=(*program, str(CASES / seed.case), *([str(payloads / seed.payload)] if seed.payload else [])),
        suspects=suspects,
        signature=seed.signature,
        rate=seed.rate,
    )


def make_history(folder: Path, tree: Path) -> History:
    """Make the repository in `folder`, which must not exist, from the tracked files of `tree`, which must be built.

    EditError where the tree has changed so much that an edit does not fit.
    """
    payloads = _payloads(tree)
    writer = _Writer(_read_tree(tree))
    writer.run(SCRIPT)
    importer = writer.importer
    folder.mkdir(parents=True)
    _git(folder, "init", "--quiet", "--initial-branch=main")
    _git(folder, "fast-import", "--quiet", "--export-marks=.git/marks", stdin=bytes(importer.stream))
    _git(folder, "reset", "--quiet", "--hard", "main")
    lines = (folder / ".git/marks").read_text(encoding="ascii").splitlines()
    shas = {int(mark[1:]): sha for mark, sha in (line.split() for line in lines)}
    commits = tuple(
        Made(shas[number], tuple(shas[parent] for parent in parents), subject, name)
        for number, (subject, name, parents) in enumerate(importer.made, 1)
    )
    return History(folder, commits, tuple(_regression(seed, commits, payloads) for seed in seeded.SEEDS))


def main() -> int:
    if len(sys.argv) != 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 125
    try:
        history = make_history(Path(sys.argv[1]).resolve(), TREE)
    except (EditError, OSError, RuntimeError) as error:
        print(f"history: {error}", file=sys.stderr)
        return 125
    for made in history.commits:
        print(f"{made.sha[:12]}  {made.subject}" + (f"  [{made.name}]" if made.name else ""))
    for found in history.regressions:
        first = found.first_bad[:12] if not found.suspects else f"one of {len(found.suspects)}"
        print(f"\n{found.name}: {found.what}\n  {found.attribution}; {first}; {found.good[:12]}..{found.bad[:12]}")
        print(f"  {' '.join(found.test)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
