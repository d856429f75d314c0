# SPDX-License-Identifier: GPL-2.0-only
"""Commands through the agent: exact streams, terminals, signals, and what happens when one end goes."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest

from unikvm.errors import CannotRun, UnikvmError
from unikvm.remote import frames
from unikvm.remote.command import RemoteCommand, request
from unikvm.remote.frames import Lost, Refused

from .conftest import PATIENCE, Open


class Ran:
    """What a command did."""

    def __init__(self, agent: Open, words: list[str], stdin: bytes = b"", typed: object = None) -> None:
        stream, _process = agent()
        files = [os.memfd_create(name) for name in ("in", "out", "err")]
        os.write(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        command = RemoteCommand(stream, words, stdin=files[0], stdout=files[1], stderr=files[2])
        self.status = command.run()
        self.out, self.err = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in files[1:])
        for fd in files:
            os.close(fd)


def sh(agent: Open, script: str, stdin: bytes = b"", **how: object) -> Ran:
    return Ran(agent, request(["/bin/sh", "-c", script], **how), stdin)  # type: ignore[arg-type]


def test_status_output_and_errors(agent: Open) -> None:
    ran = sh(agent, "echo out; echo err >&2; exit 7")
    assert (ran.status, ran.out, ran.err) == (7, b"out\n", b"err\n")


def test_signal_of_a_command(agent: Open) -> None:
    assert sh(agent, "kill -SEGV $$").status == 128 + signal.SIGSEGV


def test_large_streams_are_exact(agent: Open) -> None:
    data = os.urandom(12 << 20)
    ran = sh(agent, "tee /dev/stderr", data)
    assert ran.status == 0
    assert hashlib.sha256(ran.out).digest() == hashlib.sha256(data).digest()
    assert ran.err == data


def test_output_that_has_no_room(agent: Open) -> None:
    stream, _process = agent()
    words = request(["/bin/sh", "-c", "echo text"])
    with open("/dev/null", "rb") as none, open("/dev/full", "wb") as full:
        command = RemoteCommand(stream, words, stdin=none.fileno(), stdout=full.fileno())
        with pytest.raises(CannotRun, match="the output cannot be written: No space left on device"):
            command.run()


def test_directory_environment_and_odd_arguments(agent: Open, tmp_path: Path) -> None:
    odd = tmp_path / "an odd\ndir %41"
    odd.mkdir()
    words = request(
        ["/bin/sh", "-c", 'pwd; echo "$X"; for a; do echo "[$a]"; done', "sh", "", "%", "ü\n"],
        cwd=str(odd),
        env={"X": "1 2"},
    )
    ran = Ran(agent, words)
    assert ran.out.decode() == f"{odd}\n1 2\n[]\n[%]\n[ü\n]\n"


def test_a_very_long_command_line(agent: Open) -> None:
    ran = Ran(agent, request(["/bin/sh", "-c", "echo ${#1}", "sh", "%" * 100_000]))
    assert ran.out == b"100000\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_users(agent: Open) -> None:
    ran = sh(agent, "id -un; id -gn; echo $HOME $USER; pwd", user="daemon")
    assert ran.out == b"daemon\ndaemon\n/usr/sbin daemon\n/usr/sbin\n"
    assert sh(agent, "id -u; id -g; id -G", user="4711:42").out == b"4711\n42\n42\n"
    assert sh(agent, "id -u; echo $HOME $USER").out == b"0\n/root root\n"
    for user in ("nobody-knows", ":5", "5:x", "", "4294967296", "4294967295", "-1", "5:4294967296", "5:"):
        with pytest.raises(Refused, match="no such user in the guest"):
            Ran(agent, ["exec", f"user={user}", "--", "true"])


def test_commands_are_not_spared_by_the_oom_killer_as_sessions_are(agent: Open) -> None:
    mine = Path("/proc/self/oom_score_adj")
    before = mine.read_text()
    mine.write_text("500")  # the agent has -1000, for which one has to be privileged; the session has it from here
    try:
        ran = sh(agent, "cat /proc/$PPID/oom_score_adj /proc/self/oom_score_adj")
    finally:
        mine.write_text(before)
    assert ran.out == b"500\n0\n", ran.err


def test_what_cannot_start_says_why(agent: Open) -> None:
    with pytest.raises(Refused, match=r"/no/such \(in .*\): No such file"):
        Ran(agent, request(["/no/such"]), b"for nobody" * 100_000)
    with pytest.raises(Refused, match="in /no/such"):
        Ran(agent, request(["true"], cwd="/no/such"))


@pytest.mark.parametrize("words", [["nonsense"], [""], ["exec"], ["exec", "x", "--", "true"], ["put", "a"], ["get"]])
def test_bad_requests(agent: Open, words: list[str]) -> None:
    with pytest.raises(Refused):
        Ran(agent, words)


def test_unread_input_ends_nothing(agent: Open) -> None:
    ran = sh(agent, "head -c 5", b"12345" + b"x" * 5_000_000)
    assert (ran.status, ran.out) == (0, b"12345")
    ran = sh(agent, "exec <&-; sleep 0.2; echo closed", b"y" * 3_000_000)
    assert (ran.status, ran.out) == (0, b"closed\n")


def test_a_child_that_keeps_the_pipe_does_not_hold_up_the_end(agent: Open) -> None:
    ran = sh(agent, "sleep 30 & head -c 65536 /dev/zero; kill -9 $$")
    assert (ran.status, len(ran.out)) == (128 + 9, 65536)


def test_pty(agent: Open) -> None:
    ran = sh(agent, "tty >/dev/null && stty size && ps -o tpgid= -p $$; exit 3", size=(101, 33))
    assert ran.status == 3
    assert ran.out.startswith(b"33 101\r\n")
    assert int(ran.out.split()[2]) > 0


def test_pty_takes_the_end_of_input(agent: Open) -> None:
    assert b"got it" in sh(agent, "cat; echo got it", b"typed\n", size=(80, 24)).out


def test_pty_output_is_complete(agent: Open) -> None:
    ran = sh(agent, "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done", size=(80, 24))
    assert ran.out.count(b"\n") == 5000


def test_a_login_shell(agent: Open) -> None:
    ran = Ran(agent, request([], login=True, size=(80, 24)), b"echo $0 $HOME; exit 5\n")
    assert ran.status == 5
    assert b"-bash /root" in ran.out or b"-sh /root" in ran.out


def test_a_login_shell_that_reads_a_script(agent: Open) -> None:
    """Without a terminal: its input ends, and it with it."""
    ran = Ran(agent, request([], login=True), b"tty; echo at home in $HOME\n")
    assert ran.status == 0
    assert b"not a tty\nat home in /root\n" in ran.out


class Running:
    """A command whose user types and looks."""

    def __init__(self, agent: Open, words: list[str]) -> None:
        self.stream, self.process = agent()
        self._stdin, self.typing = os.pipe()
        self.output, self._stdout = os.pipe()
        self.command = RemoteCommand(self.stream, words, stdin=self._stdin, stdout=self._stdout, stderr=self._stdout)
        self.result: int | UnikvmError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._seen = b""

    def _run(self) -> None:
        try:
            self.result = self.command.run()
        except UnikvmError as error:
            self.result = error

    def expect(self, text: bytes) -> None:
        while text not in self._seen:
            self._seen += os.read(self.output, 4096)

    def end(self) -> object:
        self._thread.join(PATIENCE)
        for fd in (self._stdin, self.typing, self.output, self._stdout):
            os.close(fd)
        return self.result


def test_sizes_and_signals(agent: Open) -> None:
    script = "trap 'stty size; exit 3' WINCH; echo ready; while read line; do echo got $line; done"
    running = Running(agent, request(["/bin/sh", "-c", script], size=(80, 24)))
    running.expect(b"ready")
    os.write(running.typing, b"typed\n")
    running.expect(b"got typed")
    running.command.resize(120, 40)
    os.write(running.typing, b"more\n")  # some shells run the trap only when `read` returns
    running.expect(b"40 120")
    assert running.end() == 3


def test_a_signal_does_not_wait_behind_input(agent: Open) -> None:
    """Nobody reads stdin, which is longer than all buffers."""
    running = Running(agent, request(["/bin/sh", "-c", "echo ready; exec sleep 60"]))
    running.expect(b"ready")

    def feed() -> None:
        try:
            os.write(running.typing, bytes(4 << 20))
        except OSError:
            pass

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    time.sleep(0.3)
    running.command.signal(signal.SIGINT)
    running._thread.join(PATIENCE)
    assert running.result == 128 + signal.SIGINT
    os.close(running._stdin)
    feeder.join(PATIENCE)


def test_a_slow_reader_holds_nothing_else_up(agent: Open) -> None:
    running = Running(agent, request(["/bin/sh", "-c", "trap 'exit 9' TERM; echo ready; cat /dev/zero & wait"]))
    running.expect(b"ready")
    time.sleep(0.3)
    running.command.signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while running.result is None and time.monotonic() < deadline:
        if select.select([running.output], [], [], 0.1)[0]:
            os.read(running.output, 1 << 16)
    assert running.result == 9
    running.end()


@pytest.mark.parametrize("size", [None, (80, 24)])
def test_a_client_that_vanishes(agent: Open, tmp_path: Path, size: tuple[int, int] | None) -> None:
    mark = tmp_path / "hung up"
    # A shell that says "Hangup" to nobody would die of that before its trap.
    script = f"trap '' PIPE; trap 'echo > \"{mark}\"; exit' HUP; echo ready; while :; do sleep 0.05; done"
    stream, process = agent()
    stream.put_words(frames.REQUEST, *request(["/bin/sh", "-c", script], size=size))
    while stream.wait()[0] != frames.OUT:
        pass
    stream.close()
    assert process.wait(PATIENCE) == 0
    deadline = time.monotonic() + PATIENCE
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_agent_that_vanishes(agent: Open) -> None:
    running = Running(agent, request(["/bin/sh", "-c", "echo ready; sleep 2"]))
    running.expect(b"ready")
    running.process.kill()
    assert isinstance(running.end(), Lost)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00D", b"\xff\xff\xffR", b"\x02\x00\x00R%z", b"\x00\x00\x00R"],
)
def test_garbage_ends_the_session(agent: Open, garbage: bytes) -> None:
    stream, process = agent()
    stream.sock.send(garbage)
    time.sleep(0.05)
    stream.close()
    assert process.wait(PATIENCE) in (0, 1)


def test_more_input_than_there_was_credit_for(agent: Open) -> None:
    stream, process = agent()
    stream.put_words(frames.REQUEST, "exec", "--", "sleep", "60")
    with pytest.raises(Lost):  # noqa: PT012
        for _ in range(40):
            stream.put(frames.DATA, bytes(frames.MAX_DATA))
        while True:
            stream.wait()
    assert process.wait(PATIENCE) == 0


def test_many_at_once(agent: Open) -> None:
    sessions = [Running(agent, request(["/bin/sh", "-c", f"read x; exit {number}"])) for number in range(20)]
    for session in sessions:
        os.write(session.typing, b"\n")
    assert [session.end() for session in sessions] == list(range(20))


def test_an_agent_of_another_build() -> None:
    import socket

    ours, theirs = socket.socketpair()
    head = (frames.HELLO << 24 | 1).to_bytes(4, "little")
    theirs.send(head + b"9")
    with frames.Stream(ours) as stream, pytest.raises(UnikvmError, match="speaks protocol 9"):
        stream.wait()
    theirs.close()


def test_what_the_guest_says_moves_no_cursor() -> None:
    assert frames.text(b"a\x1b[2J\rb\xff") == "a?[2J?b\N{REPLACEMENT CHARACTER}"


def test_the_two_ends_name_the_same_kinds() -> None:
    header = (Path(__file__).parents[3] / "tools/kvm/guest/frames.h").read_text()
    for name in ("DATA", "EOF", "REQUEST", "WINSIZE", "SIGNAL", "HELLO", "STARTED", "OUT", "ERR", "CREDIT", "EXIT",
                 "ERROR", "WARNING", "ENTRY", "HOLE", "UP", "DONE"):  # fmt: skip
        assert f"FRAME_{name} = '{chr(getattr(frames, name))}'" in header
    assert f'AGENT_PROTOCOL\t"{frames.PROTOCOL}"' in header
