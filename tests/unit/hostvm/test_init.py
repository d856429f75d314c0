# SPDX-License-Identifier: GPL-2.0-only
"""init's protocol and relays, with socket pairs for ports (`init --serve`): no VM needed."""

from __future__ import annotations

import hashlib
import os
import select
import signal
from pathlib import Path

import pytest

from unikvm import wire

from .conftest import PATIENCE, Serve


class Init:
    """The front's side of a served init."""

    def __init__(self, serve: Serve) -> None:
        ports, self.process = serve()
        for sock in ports.values():
            sock.setblocking(False)
        self.ctl, self.stdin, self.stdout, self.stderr = ports.values()
        self._lines = wire.LineReader()
        self._ready: list[list[str]] = []

    def send(self, *words: str) -> None:
        self.ctl.setblocking(True)
        self.ctl.sendall(wire.encode(*words))
        self.ctl.setblocking(False)

    def line(self) -> list[str]:
        while not self._ready:
            assert select.select([self.ctl], [], [], PATIENCE)[0], "init does not answer"
            self._ready += self._lines.feed(self.ctl.recv(65536))
        return self._ready.pop(0)

    def run(self, request: bytes, stdin: bytes = b"") -> tuple[wire.Command, bytes, bytes]:
        command = wire.Command()
        output = {wire.PORT_STDOUT: bytearray(), wire.PORT_STDERR: bytearray()}
        self.ctl.setblocking(True)
        self.ctl.sendall(request + wire.encode("eof", str(len(stdin))))
        self.ctl.setblocking(False)
        pending = memoryview(stdin)
        while not command.done or (command.pid and len(pending)):
            feeding = [self.stdin] if command.pid and len(pending) else []
            readable, writable, _ = select.select([self.ctl, self.stdout, self.stderr], feeding, [], PATIENCE)
            assert readable or writable, "init is stuck"
            if writable:
                pending = pending[self.stdin.send(pending[:50000]) :]
            if self.ctl in readable:
                for words in self._lines.feed(self.ctl.recv(65536)):
                    assert command.on_line(words), words
            for port, sock in ((wire.PORT_STDOUT, self.stdout), (wire.PORT_STDERR, self.stderr)):
                if sock in readable:
                    data = sock.recv(65536)
                    output[port] += data
                    command.on_output(port, len(data))
        return command, bytes(output[wire.PORT_STDOUT]), bytes(output[wire.PORT_STDERR])

    def shell(self, script: str, stdin: bytes = b"", **how: object) -> tuple[wire.Command, bytes, bytes]:
        return self.run(wire.exec_line(["/bin/sh", "-c", script], **how), stdin)  # type: ignore[arg-type]


@pytest.fixture
def init(serve_init: Serve) -> Init:
    served = Init(serve_init)
    assert served.line() == ["ready", wire.PROTOCOL]
    return served


def test_status_output_and_errors(init: Init) -> None:
    command, out, err = init.shell("echo out; echo err >&2; exit 7")
    assert (command.status, out, err) == (7, b"out\n", b"err\n")


def test_signal(init: Init) -> None:
    command, _, _ = init.shell("kill -SEGV $$")
    assert command.signal == signal.SIGSEGV


def test_environment_directory_and_odd_arguments(init: Init, tmp_path: Path) -> None:
    odd = tmp_path / "an odd\ndir %41"
    odd.mkdir()
    argv = ["/bin/sh", "-c", 'pwd; env | sort | grep -v ^_=; for a; do echo "[$a]"; done', "sh", "", "a b", "%", "ü\n"]
    command, out, _ = init.run(wire.exec_line(argv, cwd=str(odd), env={"X": "1 2", "PATH": "/bin:/usr/bin"}))
    assert command.status == 0
    text = out.decode()
    assert text.startswith(f"{odd}\n")
    assert "\nX=1 2\n" in text
    assert "\nPATH=/bin:/usr/bin\n" in text
    assert text.endswith("[]\n[a b]\n[%]\n[ü\n]\n")


def test_a_default_path_is_there(init: Init) -> None:
    command, out, _ = init.run(wire.exec_line(["printenv", "PATH"]))
    assert command.status == 0
    assert b"/usr/bin" in out


@pytest.mark.parametrize("how", [{"argv": ["/no/such"]}, {"argv": ["true"], "cwd": "/no/such"}])
def test_what_cannot_start_says_why(init: Init, how: dict[str, object]) -> None:
    command, _, _ = init.run(wire.exec_line(**how), b"for nobody")  # type: ignore[arg-type]
    assert "/no/such" in command.error
    assert "No such file" in command.error
    assert init.shell("echo still here; cat", b"mine")[1] == b"still here\nmine"


def test_large_streams_are_exact(init: Init) -> None:
    data = os.urandom(3 << 20)
    command, out, err = init.shell("tee /dev/stderr", data)
    assert command.status == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert err == data


def test_unread_input_is_not_the_next_commands(init: Init) -> None:
    command, out, _ = init.shell("head -c 5", b"12345" + b"x" * 500_000)
    assert (command.status, out) == (0, b"12345")
    assert init.shell("cat", b"mine")[1] == b"mine"


def test_input_without_a_reader_does_not_stop_anything(init: Init) -> None:
    command, out, _ = init.shell("exec <&-; echo closed", b"y" * 300_000)
    assert (command.status, out) == (0, b"closed\n")


def test_input_stays_where_it_is_while_the_command_wants_none(init: Init) -> None:
    """Endless input does not keep init busy, nor the command's end from being told."""
    init.ctl.send(wire.exec_line(["/bin/sh", "-c", "exec <&-; sleep 2; exit 6"]))
    assert init.line()[0] == "ok"
    sent = 0
    while sent < 5_000_000 and select.select([], [init.stdin], [], 0.5)[1]:
        sent += init.stdin.send(b"y" * 50_000)
    assert sent < 5_000_000
    assert init.line() == ["exit", "code", "6", "0", "0"]
    init.send("eof", str(sent))
    assert init.shell("cat", b"mine")[1] == b"mine"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_hang_up_of_an_output(init: Init, name: str) -> None:
    """The command gets SIGPIPE; what it has written before counts as far as it went out."""
    redirection = "" if name == "stdout" else ">&2"
    init.ctl.send(wire.exec_line(["/bin/sh", "-c", f"exec yes {redirection}"]) + wire.encode("eof", "0"))
    assert init.line()[0] == "ok"
    port = init.stdout if name == "stdout" else init.stderr
    assert select.select([port], [], [], PATIENCE)[0]
    init.send(*wire.hangup(f"unikvm.{name}"))
    verb, kind, number, *counts = init.line()
    assert (verb, kind, int(number)) == ("exit", "signal", signal.SIGPIPE)
    arrived = 0
    while select.select([port], [], [], 0.2)[0]:
        arrived += len(port.recv(1 << 20))
    assert sorted(map(int, counts)) == [0, arrived]


def test_output_of_a_dead_command_is_kept(init: Init) -> None:
    """The command dies with a full pipe behind it, and a child that keeps the pipe open does not hold up the end."""
    command, out, _ = init.shell("sleep 30 & head -c 65536 /dev/zero; kill -9 $$")
    assert command.signal == signal.SIGKILL
    assert len(out) == 65536


def test_ping_is_answered_while_a_command_is_stuck(init: Init) -> None:
    init.ctl.send(wire.exec_line(["sleep", "60"]) + wire.encode("eof", "0"))
    assert init.line()[0] == "ok"
    init.send("ping", "1")
    assert init.line() == ["pong", "1"]
    init.send("signal", "15")
    assert init.line() == ["exit", "signal", "15", "0", "0"]


def test_a_second_command_is_refused_while_one_runs(init: Init) -> None:
    init.ctl.send(wire.exec_line(["sleep", "60"]) + wire.encode("eof", "0") + wire.exec_line(["true"]))
    assert init.line()[0] == "ok"
    assert init.line() == ["error", "exec: a command is running"]
    init.send("signal", "9")
    assert init.line()[:3] == ["exit", "signal", "9"]


def test_pty(init: Init) -> None:
    command, out, err = init.shell("tty >/dev/null && stty size && ps -o tpgid= -p $$", tty="pty", size=(101, 33))
    assert command.status == 0
    assert out.startswith(b"33 101\r\n")
    assert int(out.split()[2]) > 0
    assert err == b""


def test_pty_takes_input_and_sizes(init: Init) -> None:
    script = "trap 'stty size; exit 3' WINCH; echo ready; while read line; do echo got $line; done"
    init.ctl.send(wire.exec_line(["/bin/sh", "-c", script], tty="pty", size=(80, 24)))
    assert init.line()[0] == "ok"

    def until(text: bytes) -> bytes:
        seen = b""
        while text not in seen:
            assert select.select([init.stdout], [], [], PATIENCE)[0], seen
            seen += init.stdout.recv(4096)
        return seen

    until(b"ready\r\n")
    init.stdin.send(b"typed\n")
    until(b"got typed\r\n")
    init.send("winsize", "120", "40")
    init.stdin.send(b"more\n")  # some shells run the trap only when `read` returns
    until(b"40 120\r\n")
    init.send("eof", "11")
    assert init.line()[:3] == ["exit", "code", "3"]


def test_pty_output_is_complete(init: Init) -> None:
    command, out, _ = init.shell("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done", tty="pty")
    assert command.status == 0
    assert out.split(b"\r\n")[-2] == b"line 4999"
    assert out.count(b"\n") == 5000


def test_files_are_handed_over(init: Init, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "result").write_bytes(data)
    init.send("read", str(tmp_path / "result"))
    verb, content = init.line()
    assert verb == "data"
    assert wire.raw(content) == data
    for path in (tmp_path / "missing", tmp_path):
        init.send("read", str(path))
        assert init.line()[0] == "error"


def test_too_large_a_file_is_refused(init: Init, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes((1 << 20) + 1))
    init.send("read", str(tmp_path / "big"))
    assert init.line() == ["error", "read: the file is larger than 1 MiB"]


@pytest.mark.parametrize("line", [b"nonsense\n", b"\n", b"exec\n", b"exec nonsense -- true\n", b"exec --\n", b"eof\n"])
def test_bad_requests_get_an_error(init: Init, line: bytes) -> None:
    init.ctl.send(line)
    assert init.line()[0] == "error"


@pytest.mark.parametrize("line", [b"ping %\n", b"ping %zz\n", b"ping %00\n", b"ping %4\n"])
def test_malformed_lines_get_an_error(init: Init, line: bytes) -> None:
    init.ctl.send(line)
    assert init.line() == ["error", "malformed line"]
    init.send("ping", "alive")
    assert init.line() == ["pong", "alive"]


def test_a_very_long_command_line(init: Init) -> None:
    argument = "%" * 100_000  # three times as long on the wire
    command, out, _ = init.run(wire.exec_line(["/bin/sh", "-c", "echo ${#1}", "sh", argument]))
    assert (command.status, out) == (0, b"100000\n")


def test_it_ends_when_the_front_is_gone(init: Init) -> None:
    init.ctl.close()
    assert init.process.wait(PATIENCE) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_command_as_another_user(init: Init) -> None:
    command, out, _err = init.shell("id -u; id -g; id -G", user="4711:42,7,9")
    assert (command.status, out) == (0, b"4711\n42\n42 7 9\n")
    command, out, _err = init.shell("id -u")
    assert out == b"0\n"


# 2^32 would be cut to root, and the kernel has no user 2^32 - 1.
@pytest.mark.parametrize(
    "user",
    [
        "",
        "5",
        "5:",
        "x:1",
        "5:1,",
        "5:1;2",
        "5: 6",
        "-1:5",
        "4294967296:5",
        "4294967295:5",
        "5:4294967296",
        "99999999999999999999:5",
        ("5:" + 65 * "1,").rstrip(","),
    ],
)
def test_users_that_are_none(init: Init, user: str) -> None:
    init.send("exec", f"user={user}", "--", "true")
    assert init.line() == ["error", f"exec: user={user}"[:86]]
    init.send("eof", "0")


def test_sync_and_binds(init: Init, tmp_path: Path) -> None:
    init.send("sync")
    assert init.line() == ["ok"]
    init.send("bind", str(tmp_path), "relative")
    assert init.line()[0] == "error"
    init.send("bind", str(tmp_path))
    assert init.line()[0] == "error"
