# SPDX-License-Identifier: GPL-2.0-only
"""A campaign's folder: what was asked for, and each result, appended as it comes. What is in it survives kill -9.

XDG_STATE_HOME/unikvm/bisect/NAME: campaign.json, results.jsonl, bisect.log (git's), logs/, report.html. repository.git
and trees/ are only there while it runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from unikvm.campaign.verdict import Result
from unikvm.errors import CannotRun


@dataclass(frozen=True)
class Settings:
    """What was asked for, resolved: commits by their SHA, kernels by release or path."""

    source: str  # a directory in the developer's repository
    good: tuple[str, ...]
    bad: str
    kernels: tuple[str, ...]  # from good to bad; a single one: no axis
    command: tuple[str, ...]
    cwd: str
    first_parent: bool = False
    skip: tuple[str, ...] = ()
    marks: tuple[tuple[str, str], ...] = ()  # good, bad or skip, and a commit: of a log that is replayed
    guest_kernel: str = ""  # the package that the test's guests boot, where it is Debian's
    linux: str = ""  # a Linux tree: kernels are the two ends there, linux:SHA
    linux_config: str = ""
    timeout: float | None = 300.0
    shares: tuple[str, ...] = ()
    signature: str | None = None
    kernel_half: bool = True  # whether it is built and loaded at all
    flaky: bool = False
    failure_rate: float | None = None
    false_rate: float | None = None
    confidence: float = 0.99
    max_runs: int = 500

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Settings:
        """From JSON: its lists are tuples here."""
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        lists["marks"] = tuple((kind, commit) for kind, commit in fields["marks"])
        return cls(**{**fields, **lists})


@dataclass(frozen=True)
class Row:
    """One result. `key` names what ran, by content; `log` is a file in logs/."""

    number: int
    kernel: str
    user: str  # commit of the user half
    half: str  # commit of the kernel half
    key: str
    role: str  # what it was for: "bad end", "search", "attribution" …
    log: str
    result: Result


def home() -> str:
    """Where campaigns are kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "unikvm", "bisect")


def latest() -> str:
    """The name of the campaign that was used last. CannotRun where there is none."""
    folder = home()
    names = [name for name in os.listdir(folder) if os.path.exists(_settings(name))] if os.path.isdir(folder) else []
    if not names:
        raise CannotRun("no bisection to go on with", hint="start one: --good REV --bad REV -- TEST")
    return max(names, key=lambda name: os.path.getmtime(os.path.join(folder, name)))


def _settings(name: str) -> str:
    return os.path.join(home(), name, "campaign.json")


class Store:
    """One campaign on disk, and locked: two processes do not work on the same."""

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self.folder = os.path.join(home(), name)
        if settings is None and not os.path.exists(_settings(name)):
            raise CannotRun(f"no bisection {name}", hint=f"they are in {home()}")
        try:
            os.makedirs(os.path.join(self.folder, "logs"), exist_ok=True)
            self._lock = open(os.path.join(self.folder, "lock"), "w", encoding="ascii")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(self.folder)
            if settings is not None:
                self._write("campaign.json", json.dumps(asdict(settings), indent=1))
        except BlockingIOError:
            raise CannotRun(f"the bisection {name} is at work in another process") from None
        except OSError as error:
            raise self._failed(error) from error
        with open(_settings(name), encoding="utf-8") as file:
            self.settings = settings or Settings.of(json.load(file))
        self.rows = self._read()

    def path(self, *parts: str) -> str:
        """Of something in the folder."""
        return os.path.join(self.folder, *parts)

    def _read(self) -> list[Row]:
        """What was appended; a line that a kill cut short is not there."""
        rows: list[Row] = []
        try:
            with open(self.path("results.jsonl"), "rb+") as file:
                whole = 0
                for line in file:
                    try:
                        fields = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    rows.append(Row(**{**fields, "result": Result(**fields["result"])}))
                    whole += len(line)
                file.truncate(whole)
        except FileNotFoundError:
            pass
        return rows

    def append(self, row: Row) -> None:
        """Keep a result, on disk when this returns; its output goes to a file of its own."""
        short = replace(row, result=replace(row.result, output="", console=""))
        try:
            with open(self.path("logs", row.log), "w", encoding="utf-8", errors="replace") as file:
                file.write(_log_text(row))
            with open(self.path("results.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(short)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        self.rows.append(short)

    def log(self, row: Row) -> str:
        """What a run said, with the consoles; a remark where it is gone."""
        try:
            with open(self.path("logs", row.log), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return "(its log is gone)"

    def write_log(self, text: str) -> None:
        """The log in git's format."""
        self._write("bisect.log", text)

    def _write(self, name: str, text: str) -> None:
        path = self.path(name)
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> CannotRun:
        return CannotRun(
            f"cannot write to {self.folder}: {error.strerror}",
            hint="make room, and go on with --resume; XDG_STATE_HOME names another place",
        )

    def tidy(self) -> None:
        """Remove what the campaign needs no more once it is over."""
        for name in ("trees", "repository.git", "linux.git"):
            shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def _log_text(row: Row) -> str:
    result = row.result
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    return (
        f"host kernel: {row.kernel}\nuser half:   {row.user}\nkernel half: {row.half}\n"
        f"{result.verdict}: {result.reason or 'status 0'} ({seconds}; tries: {result.tries})\n"
        f"signature:   {result.signature or '-'}\n\n"
        f"---- output of the test (with the guest's console) ----\n{result.output}\n"
        f"---- the end of the host kernel's console ----\n{result.console}\n"
    )


def new_name() -> str:
    """A name for a new campaign: when it began."""
    return time.strftime("%Y%m%d-%H%M%S")
