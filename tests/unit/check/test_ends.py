# SPDX-License-Identifier: GPL-2.0-only
"""How a command ended, by what kind it is."""

from __future__ import annotations

import pytest

from unikvm.campaign.verdict import FAIL, PASS, SKIP
from unikvm.check.ends import NO_END, read, timed_out
from unikvm.check.job import BY_QEMU, BY_UNIKVM, SELFTEST, STATUS

ASSERTION = """\
==== Test Assertion Failure ====
  x86_64/smm_test.c:171: stage == stage_reported
  pid=812 tid=812 errno=4 - Interrupted system call
"""
KTAP = "TAP version 13\n1..2\nok 1 first\nnot ok 2 second # line 12\n"


def wrote(value: int) -> str:
    return f"unikvm: exit {value}: isa-debug-exit wrote {value} (0.1 s)\n"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "PASS: a\nSUMMARY: 1 tests\n" + wrote(0), (PASS, "")),
        (1, "FAIL: page fault\nSUMMARY: 1 tests, 1 unexpected failures\n" + wrote(1), (FAIL, "page fault")),
        (1, "FAIL: a\nPASS: b\nFAIL: c\nFAIL: d\n" + wrote(1), (FAIL, "a and 2 more")),
        (2, wrote(2), (FAIL, "isa-debug-exit wrote 2")),
        (38, "SUMMARY: 1 tests, 1 skipped\n" + wrote(38), (SKIP, "1 tests, 1 skipped")),
        (0, "unikvm: exit 0: powered off\n", (FAIL, f"{NO_END}: unikvm: exit 0: powered off")),
        (120, "unikvm: guest-panic 120: triple fault on vCPU 0 at rip 0xfff0 (0.2 s)\n", (FAIL, "guest-panic")),
        (122, "unikvm: kvm-error 122: internal error\n", (FAIL, "kvm-error")),
        (124, "unikvm: time-out 124: time-out after 60 s\n", (FAIL, "time-out")),
        (125, "unikvm: no /dev/kvm\n", (SKIP, "unikvm: no /dev/kvm")),
    ],
)  # fmt: skip
def test_unit_tests_by_unikvm(status: int, output: str, expected: tuple[str, str]) -> None:
    assert read(BY_UNIKVM, status, output) == expected


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (1, "PASS: a\n", (PASS, "")),
        (1, "qemu-system-x86_64: warning: host doesn't support requested feature\nPASS: a\n", (PASS, "")),
        (1, "qemu-system-x86_64: could not load kernel 'x'\n", (SKIP, "could not load kernel 'x'")),
        (3, "FAIL: a\n", (FAIL, "a")),
        (77, "SUMMARY: 2 tests, 2 skipped\n", (SKIP, "2 tests, 2 skipped")),
        (0, "", (FAIL, NO_END)),
        (127, "env: 'qemu-system-x86_64': No such file\n", (SKIP, "env: 'qemu-system-x86_64': No such file")),
        (134, "", (FAIL, "exit 134")),
    ],
)  # fmt: skip
def test_unit_tests_by_qemu(status: int, output: str, expected: tuple[str, str]) -> None:
    assert read(BY_QEMU, status, output) == expected


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "", (PASS, "")),
        (4, "1..0 # SKIP - Requirement not met: has_svm\n", (SKIP, "Requirement not met: has_svm")),
        (4, "", (SKIP, "it asks to be skipped")),
        (254, ASSERTION, (FAIL, "exit 254: x86_64/smm_test.c:171: stage == stage_reported")),
        (1, KTAP, (FAIL, "exit 1: second")),
        (0, KTAP, (FAIL, "exit 0, but not ok: second")),
        (1, "", (FAIL, "exit 1")),
    ],
)  # fmt: skip
def test_selftests(status: int, output: str, expected: tuple[str, str]) -> None:
    assert read(SELFTEST, status, output) == expected


def test_a_plain_status() -> None:
    assert read(STATUS, 0, "") == (PASS, "")
    assert read(STATUS, 3, "") == (FAIL, "exit 3")
    assert read(STATUS, 125, "unikvm: refused\n") == (SKIP, "unikvm: refused")


def test_no_end() -> None:
    assert timed_out(STATUS, 5, "", emulated=False) == (FAIL, "no end within 5 s")
    assert timed_out(STATUS, 5, "", emulated=True) == (SKIP, "no end within 5 s (time-out under emulation)")
    assert timed_out(BY_QEMU, 5, "KVM internal error. Suberror: 1\n", emulated=True) == (FAIL, "KVM internal error")
