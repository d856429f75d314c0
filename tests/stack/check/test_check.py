# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm check` as its user types it: ranges of this tree with faults in them, KVM's suites, and the ABI."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml

from processes import all_ended, children
from stack.check import kut
from unikvm.campaign.git import git
from unikvm.check.tap import parse
from unikvm.errors import CANNOT_RUN
from unikvm.images.artifacts import LAUNCHER
from unit.campaign.repo import commit

TREE = Path(__file__).resolve().parents[3]
SECONDS = 900
pytestmark = pytest.mark.timeout(SECONDS + 60)

REGISTER = "tools/kvm/unikvm/devices/testdev.py"
KERNEL = "kernel/accounting.c"
HEADER = "kernel/uapi/unikvm.h"
GENERATED = "tools/kvm/unikvm/uapi/unikvm.py"


def edited(tree: Path, message: str, name: str, change: Callable[[str], str], *more: str) -> str:
    """Commit a change of one file, and of `more` files by the same rule."""
    for path in (name, *more):
        text = (tree / path).read_text(encoding="utf-8")
        assert change(text) != text
        (tree / path).write_text(change(text), encoding="utf-8")
    return commit(tree, message)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """This tree as it is, as one commit more on a clone."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(TREE), str(tmp_path / "clone")], check=True)
    names = git(str(TREE), "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in names:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        if (TREE / name).exists():
            (tmp_path / "clone" / name).write_bytes((TREE / name).read_bytes())
    commit(tmp_path / "clone", "the tree")
    return tmp_path / "clone"


@pytest.fixture
def check(clone: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str, Any]]:
    """Status, stdout, stderr, JSON."""

    def run(*words: str) -> tuple[int, str, str, Any]:
        report = tmp_path / "report.json"
        done = subprocess.run(
            [LAUNCHER, "check", "--json", str(report), "--junit", str(tmp_path / "report.xml"), *words],
            cwd=clone,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr, json.loads(report.read_text()) if report.exists() else None

    return run


def verdicts(report: Any) -> list[tuple[str, dict[str, str]]]:
    return [(group["name"], {case["name"]: case["verdict"] for case in group["cases"]}) for group in report["groups"]]


def test_a_range_with_a_broken_build_and_a_regression(clone: Path, check: Any, tmp_path: Path) -> None:
    broken = edited(clone, "kernel: Break", KERNEL, lambda text: text + "\n#error broken\n")
    edited(clone, "kernel: Mend", KERNEL, lambda text: text.replace("\n#error broken\n", ""))
    edited(
        clone,
        "testdev: Forget",
        REGISTER,
        lambda text: text.replace("return self.value >> 8", "return 0 & self.value >> 8"),
    )
    tree = kut.make(tmp_path / "kut")
    options = [
        "--here",
        "test -d tests/unit",
        "--previous",
        "",
        "--kvm-unit-tests",
        tree,
        "--npt",
        "on",
        "--suite-timeout",
        "30",
    ]
    status, out, err, report = check("HEAD~3", *options)
    assert status == 1, out + err
    builds = {"kernel half builds": "pass", "user half builds": "pass", "test -d tests/unit": "pass"}
    guest = "unikvm run -- true"
    expected = [
        builds | {"kernel half builds": "fail", guest: "skip"},
        builds | {guest: "pass"},
        builds | {guest: "pass"},
        {
            "plain": "pass",
            "register": "fail",
            "smp": "pass",
            "memory": "pass",
            "fails": "known",
            "crashes": "known",
            "skips": "skip",
            "unmet": "skip",
            "other-processor": "skip",
            "other-arch": "skip",
        },
    ]
    assert [cases for _, cases in verdicts(report)] == expected, out
    assert report["first_bad_commit"] == broken
    assert f"first failing commit: {broken[:7]}" in err
    assert "#error broken" in out
    assert "the test device keeps what is written; passed before; QEMU passes it on the same host" in out
    lines = parse(out)
    assert [line.ok for line in lines if not line.depth] == [False, True, True, False]
    assert all(Path(case["log"]).exists() for group in report["groups"] for case in group["cases"] if case["log"])
    assert (JUnitXml.fromfile(str(tmp_path / "report.xml")).failures) == 2
    assert not list((tmp_path / "state").glob("unikvm/check/*/trees"))


def test_across_a_change_of_the_abi(clone: Path, check: Any) -> None:
    """A new major version: both crossings refuse to run, and that is no failure."""

    def newer(text: str) -> str:
        return re.sub(r"(UNIKVM_ABI_MAJOR(\s*=)?\s+)(0x)?1\b", r"\g<1>\g<3>2", text)

    edited(clone, "abi: Make it new", HEADER, newer, GENERATED)
    status, out, err, report = check("HEAD~1", "--here", "")
    assert status == 0, out + err
    groups = report["groups"]
    assert [group["verdict"] for group in groups] == ["pass", "skip", "skip"], out
    assert "ABI 2.0, this user half needs 1.x" in groups[1]["cases"][0]["reason"]
    assert "ABI 1.0, this user half needs 2.x" in groups[2]["cases"][0]["reason"]


@pytest.mark.network
def test_kvm_selftests_with_nested_paging_and_without(clone: Path, check: Any) -> None:
    edited(clone, "kernel: Change", KERNEL, lambda text: text + "\n/* another */\n")
    only = [word for name in ("set_sregs_test", "cpuid_test", "svm_vmcall_test") for word in ("--only", name)]
    status, out, err, report = check(
        "HEAD~1", "--here", "", "--previous", "", "--selftests", "linux-source", *only, "--", "true"
    )
    assert status == 0, out + err
    cases = {"x86_64/set_sregs_test": "pass", "x86_64/cpuid_test": "pass", "x86_64/svm_vmcall_test": "skip"}
    assert verdicts(report)[1:] == [
        ("KVM selftests with nested paging", cases),
        ("KVM selftests with shadow paging", cases),
    ]
    assert not any(group["note"] for group in report["groups"]), "both sides were to be run"


def test_what_runs_in_the_host_vm(clone: Path, check: Any) -> None:
    """Paging is as asked for, panics of the host are failures, and later tests get another host VM."""
    edited(clone, "doc: Change", "README.md", lambda text: text + "\nMore.\n")
    tests = ["--test", "grep -q Y /sys/module/kvm_amd/parameters/npt || test -d /sys/module/kvm_intel"]
    tests += [
        "--test",
        "echo c > /proc/sysrq-trigger",
        "--test",
        'test "$(git -C $UNIKVM_TREE rev-parse HEAD)" = $UNIKVM_COMMIT',
    ]
    status, out, err, report = check("HEAD~1", "--here", "", "--previous", "", *tests, "--", "true")
    assert status == 1, out + err
    cases = report["groups"][0]["cases"][2:]
    assert [case["verdict"] for case in cases] == ["pass", "fail", "pass", "pass"], out
    assert cases[1]["reason"] == "host-panic: Kernel panic - not syncing: sysrq triggered crash"
    assert "sysrq" in Path(cases[1]["log"]).read_text()


def test_what_cannot_be_run_is_no_pass(check: Any) -> None:
    status, out, err, report = check("HEAD~1", "--here", "", "--previous", "", "--test", "/no/such/test")
    assert status == CANNOT_RUN, out + err  # though both halves do build
    assert ": /no/such/test: " in err.splitlines()[-1]
    assert report["counts"] == {"pass": 2, "fail": 0, "known": 0, "skip": 1}
    status, out, err, _ = check("HEAD..HEAD")
    assert (status, out) == (CANNOT_RUN, "")
    assert err == "unikvm: RANGE HEAD..HEAD has no commits (A..B: what is in B and not in A)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_early_end_leaves_nothing(clone: Path, tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [LAUNCHER, "check", "--here", "sleep 600 & wait", "--previous", "", "-j", "1"],
        cwd=clone,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(": sleep 600 & wait\n"):
            break
    time.sleep(1)
    below = children(process.pid)
    assert below
    process.send_signal(number)
    process.wait(60)
    process.stderr.close()
    assert all_ended(below)
