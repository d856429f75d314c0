# SPDX-License-Identifier: GPL-2.0-only
"""Reads how a command ended: a plain status, a payload of kvm-unit-tests by either VMM, a KVM selftest."""

from __future__ import annotations

import re

from unikvm.campaign import verdict
from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check import tap
from unikvm.check.job import BY_QEMU, BY_UNIKVM, SELFTEST
from unikvm.errors import CANNOT_RUN

KSFT_SKIP = 4  # Linux: tools/testing/selftests/kselftest.h
UNIT_TEST_SKIP = 77 >> 1  # kvm-unit-tests: report_summary(); QEMU makes 77 of it
NO_END = "it ended without isa-debug-exit"
_WROTE = re.compile(r"^unikvm: [\w-]+ \d+: isa-debug-exit wrote (\d+)", re.MULTILINE)
_QEMU_ERROR = re.compile(r"^qemu-system-\w+: (?!warning: )(.*)$", re.MULTILINE)
_QEMU_STOPPED = "KVM internal error"  # where it stays until somebody looks
_SUMMARY = re.compile(r"^SUMMARY: (.*)$", re.MULTILINE)
_FAILED = re.compile(r"^FAIL: (.*)$", re.MULTILINE)
_UNMET = re.compile(r"# SKIP (?:- )?(.*)")
_ASSERTION = re.compile(r"==== Test Assertion Failure ====\n\s*(.*)\n")


def read(reads: str, status: int, output: str) -> tuple[str, str]:
    """Verdict and reason of a command that ended by itself with `status`."""
    if reads == BY_UNIKVM:
        wrote = _WROTE.findall(output)
        if wrote:
            return _unit_test(int(wrote[-1]), output)
        kind, reason = _status(status, output)
        return (FAIL, f"{NO_END}: {verdict.last_line(output)}") if kind == PASS else (kind, reason)
    if reads == BY_QEMU:
        return _qemu(status, output)
    if reads == SELFTEST:
        return _selftest(status, output)
    return _status(status, output)


def _status(status: int, output: str) -> tuple[str, str]:
    """A plain one. No signals: whoever waits for the command knows those."""
    return (FAIL, f"exit {status}") if status > 128 else verdict.of_status(status, False, output)


def timed_out(reads: str, seconds: float, output: str, *, emulated: bool) -> tuple[str, str]:
    """Verdict and reason of a command that had no end. Under emulation it may only have been slow."""
    if reads == BY_QEMU and _QEMU_STOPPED in output:
        return FAIL, _QEMU_STOPPED
    text = f"no end within {seconds:g} s"
    return (SKIP, f"{text} (time-out under emulation)") if emulated else (FAIL, text)


def _qemu(status: int, output: str) -> tuple[str, str]:
    """QEMU ends with `value << 1 | 1` where the guest writes `value` to isa-debug-exit; with 1 for its own errors."""
    error = _QEMU_ERROR.search(output)
    if status == CANNOT_RUN or (status == 1 and error):
        return SKIP, error[1].strip() if error else verdict.last_line(output)
    if status & 1 and status != verdict.NOT_FOUND:
        return _unit_test(status >> 1, output)
    return (FAIL, NO_END) if status == 0 else _status(status, output)


def _unit_test(value: int, output: str) -> tuple[str, str]:
    """What a test of kvm-unit-tests says by the value that it wrote."""
    summary = _SUMMARY.findall(output)
    if value == 0:
        return PASS, ""
    if value == UNIT_TEST_SKIP:
        return SKIP, summary[-1].strip() if summary else "it asks to be skipped"
    failed = [line.strip() for line in _FAILED.findall(output)]
    if failed:
        return FAIL, failed[0] + (f" and {len(failed) - 1} more" if len(failed) > 1 else "")
    return FAIL, f"isa-debug-exit wrote {value}"


def _selftest(status: int, output: str) -> tuple[str, str]:
    if status == KSFT_SKIP:
        unmet = _UNMET.search(output)
        return SKIP, unmet[1].strip() if unmet else "it asks to be skipped"
    kind, reason = _status(status, output)
    failed = [line.name for line in tap.parse(output) if line.failed]
    assertion = _ASSERTION.search(output)
    if kind == FAIL and failed:
        reason += f": {', '.join(failed[:3])}"
    elif kind == FAIL and assertion:
        reason += f": {assertion[1].strip()}"
    elif kind == PASS and failed:
        return FAIL, f"exit 0, but not ok: {', '.join(failed[:3])}"
    return kind, reason
