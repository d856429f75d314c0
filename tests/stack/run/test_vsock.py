# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm exec`, `shell` and `cp` with guests that run in a host VM, from outside and through the real vhost-vsock."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stack.run.test_front_end import Terminal
from unikvm.cli import agent
from unikvm.errors import CANNOT_RUN
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.guest import OPTIONAL_MODULES, guest_initramfs
from unikvm.images.kernel import Kernel

SECONDS = 120.0
BIG = 10 << 20


@pytest.fixture(scope="module", autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The names of our guests are ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@contextmanager
def guest(name: str, *options: str) -> Iterator[str]:
    process = subprocess.Popen(
        [LAUNCHER, "run", "--host", "vm", "-n", name, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + SECONDS
        while unikvm("stat", name).returncode:
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
            assert time.monotonic() < deadline, f"{name} does not come"
            time.sleep(0.2)
        yield name
    finally:
        process.kill()
        process.wait()


def unikvm(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([LAUNCHER, *words], input=stdin, capture_output=True, timeout=SECONDS, check=False)


@pytest.fixture(scope="module")
def lab(runtime: None) -> Iterator[str]:
    """One guest for most tests; it waits for `exec` while it boots."""
    with guest("lab", "--", "sleep", "1000") as name:
        assert unikvm("exec", name, "--", "true").returncode == 0
        yield name


def sh(name: str, script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return unikvm("exec", name, "--", "sh", "-c", script, stdin=stdin)


def until(name: str, script: str) -> None:
    """`script` succeeds in the guest, in time."""
    deadline = time.monotonic() + 20
    while sh(name, script).returncode:
        assert time.monotonic() < deadline, script
        time.sleep(0.1)


def test_status_streams_and_place(lab: str) -> None:
    done = sh(lab, "pwd; echo $HOME; cat; echo err >&2; exit 7", b"typed")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"/\n/\ntyped", b"err\n")
    done = unikvm(
        "exec", lab, "--cwd", "/tmp", "--env", "A=1 2", "--user", "5:6", "--", "sh", "-c", "pwd; id -u; echo $A"
    )
    assert done.stdout == b"/tmp\n5\n1 2\n", done.stderr
    assert sh(lab, "kill -9 $$").returncode == 119
    assert unikvm("exec", "--", "true").returncode == 0  # the only one that runs


def test_binary_both_ways(lab: str) -> None:
    data = os.urandom(BIG)
    done = sh(lab, "tee /tmp/big | sha256sum >&2; cat /tmp/big; rm /tmp/big", data)
    assert done.stderr.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert done.stdout == data


def test_many_at_once(lab: str) -> None:
    commands = [
        subprocess.Popen([LAUNCHER, "exec", lab, "--", "sh", "-c", f"sleep 1; exit {number}"], stdin=subprocess.DEVNULL)
        for number in range(20)
    ]
    assert [command.wait(SECONDS) for command in commands] == list(range(20))


def test_memory_that_runs_out_leaves_the_agent(lab: str) -> None:
    """What fills it is killed, or its like; not the way into the guest."""
    adjusted = "cat /proc/1/oom_score_adj /proc/$PPID/oom_score_adj /proc/self/oom_score_adj"
    assert sh(lab, adjusted).stdout == b"0\n-1000\n0\n"


def test_a_client_that_is_killed(lab: str) -> None:
    client = subprocess.Popen([LAUNCHER, "exec", lab, "--", "sleep", "4711"], stdin=subprocess.DEVNULL)
    until(lab, "ps | grep -q '[s]leep 4711'")
    client.kill()
    client.wait()
    until(lab, "! ps | grep -q '[s]leep 4711'")


def test_an_interrupt_reaches_the_command(lab: str) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done"
    client = subprocess.Popen([LAUNCHER, "exec", lab, "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=-1)
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    client.send_signal(signal.SIGINT)
    assert client.stdout.read() == b"caught\n"
    assert client.wait(SECONDS) == 3


def test_a_shell_on_a_terminal(lab: str) -> None:
    terminal = Terminal([LAUNCHER, "shell", lab])
    try:
        terminal.type(b"stty size; echo a$((1+1))b\r")
        terminal.expect(b"30 100")
        terminal.expect(b"a2b")
        termios.tcsetwinsize(terminal.slave, (40, 120))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type(b"while test \"$(stty size)\" = '30 100'; do sleep 0.1; done; stty size; sleep 4713\r")
        terminal.expect(b"40 120")
        until(lab, "ps | grep -q '[s]leep 4713'")  # sooner, the shell would have the interrupt, and sleep on
        terminal.type(b"\x03")  # to sleep, by the guest's terminal
        until(lab, "! ps | grep -q '[s]leep 4713'")
        terminal.type(b"\x01h")
        terminal.expect(b"the command gets SIGHUP")
        terminal.type(b"exit 5\r")
        assert terminal.end() == 5
    finally:
        terminal.close()


def test_a_shell_without_a_terminal(lab: str) -> None:
    """It reads a script, whose end is its own."""
    done = unikvm("shell", lab, stdin=b"tty; echo $0; (exit 6)\n")
    assert (done.returncode, done.stdout) == (6, b"not a tty\n-sh\n"), done.stderr


@pytest.mark.parametrize("how", ["keys", "SIGTERM"])
def test_leaving_a_shell(lab: str, how: str) -> None:
    terminal = Terminal([LAUNCHER, "shell", lab])
    try:
        terminal.type(b"sleep 4712\r")
        until(lab, "ps | grep -q '[s]leep 4712'")
        if how == "keys":
            terminal.type(b"\x01x")
        else:
            terminal.process.terminate()
        assert terminal.end() == 119
        until(lab, "! ps | grep -q '[s]leep 4712'")
    finally:
        terminal.close()


def test_a_tree_in_and_out(lab: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "run").write_bytes(os.urandom(100_000))
    (source / "a" / "b" / "run").chmod(0o750)
    (source / "link").symlink_to("a/b")
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 30)  # four times the guest's memory
    done = unikvm("cp", str(source), f"{lab}:/tmp")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sh(lab, "du -s /tmp/tree/sparse").stdout.startswith(b"0")
    done = unikvm("cp", f"{lab}:/tmp/tree", f"{lab}:/etc/.", str(tmp_path / "back"))
    assert done.returncode == CANNOT_RUN  # several need a directory
    (tmp_path / "back").mkdir()
    done = unikvm("cp", f"{lab}:/tmp/tree", f"{lab}:/proc/version", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, b"")
    back = tmp_path / "back" / "tree"
    assert (back / "a" / "b" / "run").read_bytes() == (source / "a" / "b" / "run").read_bytes()
    assert (back / "a" / "b" / "run").stat().st_mode == (source / "a" / "b" / "run").stat().st_mode
    assert (back / "a" / "b" / "run").stat().st_mtime_ns == (source / "a" / "b" / "run").stat().st_mtime_ns
    assert (back / "link").readlink() == Path("a/b")
    assert ((back / "sparse").stat().st_size, (back / "sparse").stat().st_blocks) == (1 << 30, 0)
    assert b"Linux" in (tmp_path / "back" / "version").read_bytes()


def test_refusals_are_one_line(lab: str, tmp_path: Path) -> None:
    for words, status, text in (
        (("exec", "nobody", "--", "true"), CANNOT_RUN, "running: lab"),
        (("exec", lab, "--", "/no/such"), CANNOT_RUN, "No such file"),
        (("exec", lab, "--user", "who", "--", "true"), CANNOT_RUN, "no such user in the guest"),
        (("cp", f"{lab}:/no/such", str(tmp_path)), 1, "No such file"),
        (("cp", "/no/such", f"{lab}:/"), 1, "No such file"),
        (("cp", "/etc/passwd", f"{lab}:/no/such/place"), CANNOT_RUN, "No such file"),
        (("cp", "/etc/passwd", f"{lab}:/proc/"), 1, "passwd: "),
    ):
        done = unikvm(*words)
        assert done.returncode == status, (words, done.stderr)
        assert text in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


def test_the_driver_is_loaded_again(lab: str) -> None:
    """In the middle of a session, whose end the client sees."""
    again = "cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport; d=$(echo virtio*); echo $d > unbind; echo $d > bind"
    sh(lab, f"setsid sh -c '{again}; echo > /again' >/dev/null 2>&1; sleep 30")
    until(lab, "test -e /again")
    assert sh(lab, "exit 3").returncode == 3


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_guest_with_a_root(transport: str) -> None:
    """The agent comes up behind the root; users are the root's."""
    with guest(f"rooted-{transport}", "--root", "/", "--transport", transport, "--", "sleep", "1000") as name:
        done = unikvm("exec", name, "--user", "daemon", "--", "sh", "-c", "cat /etc/os-release; id -un; echo $HOME")
        assert done.stdout == Path("/etc/os-release").read_bytes() + b"daemon\n/usr/sbin\n", done.stderr
        done = unikvm("cp", f"{name}:/etc/debian_version", "-", "/tmp")
        assert done.returncode == CANNOT_RUN


def test_a_guest_with_a_shell_on_its_console() -> None:
    terminal = Terminal([LAUNCHER, "run", "--host", "vm", "-n", "shown"])
    try:
        terminal.expect(b"# ")
        assert sh("shown", "exit 4").returncode == 4
        terminal.type(b"exit\r")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_a_host_without_vsock(kernel: Kernel) -> None:
    """The guest runs all the same; who asks for its agent is told what is missing."""
    optional = (*OPTIONAL_MODULES, *agent.GUEST_MODULES)
    guest_initramfs(kernel, init=init_binary(), optional=optional)  # the host VM cannot write it
    run = f"{LAUNCHER} run --host local --no-kernel-half -n bare -- sleep 60"
    ask = f"until {LAUNCHER} list | grep -q bare; do sleep 0.5; done; {LAUNCHER} exec bare -- true"
    with HostVm(HostConfig(kernel=kernel, init=init_binary())) as host:
        script = f"export XDG_RUNTIME_DIR=/run; {run} >/dev/null 2>&1 & {ask}; s=$?; kill $!; wait $!; exit $s"
        done = host.exec(["sh", "-c", script], timeout=SECONDS)
    assert b"guest bare has no vsock: the guest's agent needs /dev/vhost-vsock: No such file" in done.stderr
    assert b"modprobe vhost_vsock" in done.stderr
