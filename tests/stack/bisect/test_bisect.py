# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm bisect` for real: both halves of made commits built, host VMs booted, every seeded regression found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from processes import all_ended, children
from stack.bisect.history import History, make_history
from unikvm.images.artifacts import LAUNCHER
from unikvm.release import TREE

NAMES = (
    "double-count", "guest-time", "lost-wakeup", "leak", "boot-register", "lost-interrupt", "slots", "rtc-cpus",
    "rtc-crash", "triple-fault", "flaky",
)  # fmt: skip
CASES = Path(__file__).with_name("cases")
SECONDS = 900


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return make_history(tmp_path_factory.mktemp("made") / "history", Path(TREE))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def command(history: History, name: str, *options: str) -> list[str]:
    found = history.regression(name)
    # With its rate given it takes fewer runs; that it can be estimated, tests/unit/bisect shows.
    flaky = ["--flaky", "--failure-rate", str(found.rate), "--false-rate", "0.005"] if found.rate < 1 else []
    sought = ["--signature", found.signature] if found.signature else []
    ends = ["--repository", str(history.folder), "--good", found.good, "--bad", found.bad]
    return [LAUNCHER, "bisect", *ends, "--timeout", "60", *flaky, *sought, *options, "--", *found.test]


def run(words: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def answer_of(path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def of_repository(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_history_is_long_enough(history: History) -> None:
    assert len(history.commits) >= 40
    assert {found.name for found in history.regressions} == set(NAMES)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_regression_is_found(history: History, name: str, tmp_path: Path) -> None:
    found = history.regression(name)
    several = 1 if found.suspects else 0
    before = of_repository(history.folder)
    done = run(command(history, name, "-j", "2", "--json", str(tmp_path / "answer")), status=several)
    assert of_repository(history.folder) == before
    answer = answer_of(tmp_path / "answer")
    finding = answer["findings"][0]
    suspects = [suspect["version"] for suspect in finding["suspects"]]
    if found.suspects:
        assert found.first_bad in suspects
        assert set(suspects) <= set(found.suspects)
        assert "could be any of" in done.stdout
    else:
        assert finding["first_bad"] == found.first_bad
        assert f"{found.first_bad} is the first bad commit" in done.stdout
    assert answer["attribution"]["text"].split(":")[0] == found.attribution
    assert f"{len(answer['runs'])} runs" in done.stderr
    builds = [run for run in answer["runs"] if run["seconds"].get("build", 0) > 1]
    print(f"{name}: {len(answer['runs'])} runs, {len(builds)} with a build, {answer['seconds']} s")


@pytest.mark.timeout(SECONDS)
def test_killed_and_resumed(history: History, tmp_path: Path, state: Path) -> None:
    """Killed with -9 again and again, each time a bit later in a step: the same answer, and no process is left."""
    words = command(history, "boot-register", "-j", "2")
    for number in range(4):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        for line in process.stderr:
            if line.startswith("unikvm: [") or number == 0:
                break
        time.sleep(0.7 * number)
        below = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        assert all_ended(below)
        words = [LAUNCHER, "bisect", "--resume", "-j", "2", "--json", str(tmp_path / "answer")]
    run(words)
    assert answer_of(tmp_path / "answer")["findings"][0]["first_bad"] == history.regression("boot-register").first_bad


@pytest.mark.timeout(SECONDS)
def test_interrupted_and_resumed(history: History, tmp_path: Path) -> None:
    process = subprocess.Popen(command(history, "boot-register"), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while "[1]" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait() == 125
    assert "unikvm bisect --resume" in said
    done = run([LAUNCHER, "bisect", "--resume", "--html", str(tmp_path / "page"), "--junit", str(tmp_path / "junit")])
    assert f"{history.regression('boot-register').first_bad} is the first bad commit" in done.stdout
    page = (tmp_path / "page").read_text()
    assert "output of the test" in page
    assert "http" not in page.partition("</style>")[0]
    assert "<testsuite " in (tmp_path / "junit").read_text()
    (tmp_path / "log").write_text(run([LAUNCHER, "bisect", "--log"]).stdout)
    again = run(
        [LAUNCHER, "bisect", "--repository", str(history.folder), "--replay", str(tmp_path / "log"), "--",
         *history.regression("boot-register").test]
    )  # fmt: skip
    assert f"{history.regression('boot-register').first_bad} is the first bad commit" in again.stdout


@pytest.mark.timeout(SECONDS)
def test_a_full_disk(history: History, tmp_path: Path, state: Path) -> None:
    """The error says what to do; with room again the bisection goes on."""
    state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        done = run(command(history, "boot-register"), status=125)
        assert "no room" in done.stderr.lower() or "No space" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(state)], check=True)
        done = run([LAUNCHER, "bisect", "--resume"])
        assert f"{history.regression('boot-register').first_bad} is the first bad commit" in done.stdout
    finally:
        subprocess.run(["umount", str(state)], check=True)


@pytest.mark.timeout(SECONDS)
@pytest.mark.network
def test_host_kernels(history: History, tmp_path: Path) -> None:
    """Debian's changelog names it for 6.1.180: a guest could crash the host through an ioeventfd. 6.1.0-52 is the first
    package with it, so, from new to old, 6.1.0-51 is the first bad one."""
    payload = Path(os.environ["UNIKVM_PAYLOADS"]) / "straddle.elf"
    test = [sys.executable, "-S", str(CASES / "ioeventfd.py"), str(payload)]
    words = ["--host-kernels", "6.1.0-56..6.1.0-47", "--no-kernel-half", "--json", str(tmp_path / "answer")]
    run([LAUNCHER, "bisect", "--repository", str(history.folder), *words, "--", *test])
    answer = answer_of(tmp_path / "answer")
    assert answer["findings"][0]["first_bad"] == "6.1.0-51-cloud-amd64"
    assert answer["attribution"]["text"] == "host kernel"
    signatures = {run["signature"] for run in answer["runs"] if run["verdict"] == "fail"}
    assert signatures == {"host-panic: kernel BUG at eventfd.c:N! in ioeventfd_write"}


@pytest.mark.timeout(SECONDS)
def test_a_cluster_whose_workers_die(history: History, tmp_path: Path) -> None:
    """Two workers with folders of their own; one is killed in the middle of a step, another comes in its place."""
    program = [sys.executable, str(CASES.with_name("cluster.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.path.join(TREE, "tools/kvm")}
    with subprocess.Popen(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as cluster:
        assert cluster.stdout
        assert cluster.stdin
        address, *workers = cluster.stdout.readline().split()
        options = ["--scheduler", address, "--json", str(tmp_path / "answer")]
        process = subprocess.Popen(command(history, "boot-register", *options), stderr=subprocess.PIPE, text=True)
        assert process.stderr
        for line in process.stderr:
            if "[3]" in line:
                os.kill(int(workers[0]), signal.SIGKILL)
        assert process.wait() == 0
        cluster.stdin.close()
    answer = answer_of(tmp_path / "answer")
    assert answer["findings"][0]["first_bad"] == history.regression("boot-register").first_bad
    assert answer["attribution"]["text"] == "user half"
