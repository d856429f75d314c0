# SPDX-License-Identifier: GPL-2.0-only
"""Statuses to verdicts, and failures to signatures."""

from __future__ import annotations

import pytest

from unikvm.campaign.verdict import FAIL, PASS, SKIP, of_status, printable, signature_of

OOPS = """\
[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000010
[   12.345679] #PF: supervisor read access in kernel mode
[   12.345680] CPU: 1 PID: 812 Comm: python3 Tainted: G           OE      6.1.0-56-cloud-amd64
[   12.345681] RIP: 0010:accounting_add+0x42/0x90 [unikvm]
[   12.345682] Kernel panic - not syncing: Fatal exception
"""


@pytest.mark.parametrize(
    ("status", "timed_out", "output", "expected"),
    [
        (0, False, "", (PASS, "")),
        (3, False, "", (FAIL, "exit 3")),
        (120, False, "", (FAIL, "guest-panic")),
        (124, False, "", (FAIL, "time-out")),
        (125, False, "boo\nunikvm: no such kernel: x\n", (SKIP, "unikvm: no such kernel: x")),
        (125, False, "", (SKIP, "it says that it could not run")),
        (127, False, "env: 'nix': No such file", (SKIP, "env: 'nix': No such file")),
        (139, False, "", (FAIL, "signal 11")),
        (143, True, "", (FAIL, "no end within the time of a step")),
    ],
)
def test_statuses(status: int, timed_out: bool, output: str, expected: tuple[str, str]) -> None:
    assert of_status(status, timed_out, output) == expected


def test_an_oops_is_the_same_in_every_run() -> None:
    other = OOPS.replace("12.3456", "99.1234").replace("PID: 812", "PID: 7").replace("10\n", "18\n")
    first = signature_of("host-panic", "", OOPS)
    assert first == "host-panic: BUG: kernel NULL pointer dereference, address: X in accounting_add"
    assert signature_of("host-panic", "", other) == first


def test_another_place_is_another_failure() -> None:
    assert signature_of("host-panic", "", OOPS) != signature_of("host-panic", "", OOPS.replace("_add", "_remove"))


@pytest.mark.parametrize(
    ("output", "signature"),
    [
        (
            "unikvm: exit 3: the command ended with status 3 (2.5 s)\n",
            "exit 3: unikvm: exit N: the command ended with status N",
        ),
        ("", "exit 3"),
        ("kernel BUG at arch/x86/kvm/../../../virt/kvm/eventfd.c:728!", "exit 3: kernel BUG at eventfd.c:N!"),
        ("Traceback\nKeyError: '/tmp/a1/x'\n", "exit 3: KeyError: 'x'"),
    ],
)
def test_other_failures(output: str, signature: str) -> None:
    assert signature_of("exit 3", output, "") == signature


def test_what_xml_does_not_allow_is_left_out() -> None:
    assert printable("\x1b[31mBUG\x00:\t\ud800ü\n") == "[31mBUG:\tü\n"
