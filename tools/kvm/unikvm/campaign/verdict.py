# SPDX-License-Identifier: GPL-2.0-only
"""What a run of a test says: pass, fail, or skip with a reason; and the signature by which failures are told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from unikvm.errors import CANNOT_RUN, HANG, KVM_ERROR, PANIC, TIMEOUT, VMM_ERROR

PASS, FAIL, SKIP = "pass", "fail", "skip"
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # a shell's statuses, and env(1)'s

# Statuses that a test's own exit and `unikvm run` share have their last word in its output.
_NAMES = {
    PANIC: "guest-panic",
    HANG: "guest-hang",
    KVM_ERROR: "kvm-error",
    VMM_ERROR: "vmm-error",
    TIMEOUT: "time-out",
}
# The lines of a kernel or a program that name a failure, the most telling first.
_TELLING = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"BUG: [^\n]*",
        r"\bOops: [^\n]*",
        r"kernel BUG at [^\n]*",
        r"WARNING: CPU: \d+ PID: \d+ at [^\n]*",
        r"INFO: task [^\n]*blocked for more than",
        r"Kernel panic - not syncing: [^\n]*",
        r"^unikvm: defect: [^\n]*",
        r"^\w*(?:Error|Exception): [^\n]*",
        r"^unikvm: [^\n]*",
    )
)
_WHERE = re.compile(r"RIP: [0-9a-f]+:([A-Za-z_][\w.]*)\+0x")
# What differs from run to run.
_NOISE = (
    (re.compile(r"^\[\s*\d+\.\d+\]\s*", re.MULTILINE), ""),  # kernel time stamps
    (re.compile(r"\(?\b\d+(?:\.\d+)? ?m?s\b\)?"), ""),  # seconds
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b", re.IGNORECASE), "X"),  # addresses, object names
    (re.compile(r"(?:[\w.@+-]*/)+"), ""),  # directories: each version has its own
    (re.compile(r"\b\d+\b"), "N"),
)


@dataclass
class Result:
    """One run. `output` is the test's, `console` the end of the host kernel's; `seconds` of each phase."""

    verdict: str
    reason: str = ""  # one line: why it failed or was skipped
    status: int | None = None
    signature: str = ""
    output: str = ""
    console: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    tries: int = 1
    accident: bool = False  # a skip that says nothing of the commit: another time it may run

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


def of_status(status: int, timed_out: bool, output: str) -> tuple[str, str]:
    """Verdict and reason of a test that ended with `status` (128 + N: signal N)."""
    if timed_out:
        return FAIL, "no end within the time of a step"
    if status == 0:
        return PASS, ""
    if status == CANNOT_RUN:
        return SKIP, last_line(output) or "it says that it could not run"
    if status in (NOT_EXECUTABLE, NOT_FOUND):
        return SKIP, last_line(output) or "no such test"
    if status > 128:
        return FAIL, f"signal {status - 128}"
    return FAIL, _NAMES.get(status, f"exit {status}")


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def printable(text: str) -> str:
    """Without what XML 1.0 does not allow, as a guest's console may have it."""
    return "".join(letter for letter in text if letter in "\t\n" or " " <= letter < "\ud800" or letter > "\udfff")


def signature_of(reason: str, output: str, console: str) -> str:
    """A failure without what differs from run to run: how it ended, what the kernels or programs said, and where."""
    text = f"{console}\n{output}"
    for pattern in _TELLING:
        if found := pattern.search(text):
            where = _WHERE.search(text, found.start())
            return f"{reason}: {_normal(found[0])}" + (f" in {where[1]}" if where else "")
    return reason


def _normal(text: str) -> str:
    for pattern, instead in _NOISE:
        text = pattern.sub(instead, text)
    return " ".join(text.split())
