# SPDX-License-Identifier: GPL-2.0-only
"""The line protocol between the user half and init."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unikvm import wire

words_of_bytes = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@given(words_of_bytes)
def test_any_bytes_come_back(words: list[bytes]) -> None:
    line = wire.encode(*words)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert [wire.raw(word) for word in wire.decode(line[:-1])] == words


@given(st.lists(words_of_bytes, max_size=5), st.integers(1, 7))
def test_lines_are_cut_wherever_the_stream_is(lines: list[list[bytes]], step: int) -> None:
    stream = b"".join(wire.encode(*words) for words in lines)
    reader = wire.LineReader()
    got = [line for at in range(0, len(stream), step) for line in reader.feed(stream[at : at + step])]
    assert [[wire.raw(word) for word in words] for words in got] == lines


@pytest.mark.parametrize("word", [b"%", b"%4", b"a%zz", b"%0a", b"%+1", b"% 1"])
def test_malformed_escapes_are_refused(word: bytes) -> None:
    with pytest.raises(wire.WireError, match="malformed"):
        wire.decode_word(word)


def test_exec_line() -> None:
    line = wire.exec_line(["sh", "-c", "echo a b", ""], cwd="/my dir", env={"A": "1=2"}, tty="pty", size=(80, 24))
    assert line == b"exec tty=pty cols=80 rows=24 cwd=/my%20dir env=A=1=2 -- sh -c echo%20a%20b \n"


@pytest.mark.parametrize(
    ("argv", "cwd", "env"),
    [([], "/", {}), (["a\0"], "/", {}), (["a"], "/\0", {}), (["a"], "/", {"X": "\0"})],
)
def test_what_cannot_be_a_command_is_refused(argv: list[str], cwd: str, env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"NUL|no command"):
        wire.exec_line(argv, cwd=cwd, env=env)


def test_a_command_is_done_when_its_bytes_have_arrived() -> None:
    command = wire.Command()
    assert command.on_line(["ok", "42"])
    command.on_output(wire.PORT_STDOUT, 3)
    assert command.on_line(["exit", "code", "7", "5", "1"])
    assert not command.done
    command.on_output(wire.PORT_STDERR, 1)
    assert not command.done
    command.on_output(wire.PORT_STDOUT, 2)
    assert command.done
    assert (command.pid, command.status, command.signal, command.shell_status) == (42, 7, 0, 7)


def test_a_signal_is_told_from_a_status() -> None:
    command = wire.Command()
    command.on_line(["ok", "42"])
    command.on_line(["exit", "signal", "9", "0", "0"])
    assert command.done
    assert (command.status, command.signal, command.shell_status) == (0, 9, 137)


def test_a_command_that_could_not_start() -> None:
    command = wire.Command()
    assert command.on_line(["error", "nosuch: No such file or directory"])
    assert command.done
    assert command.error.startswith("nosuch")


def test_other_lines_are_not_the_commands() -> None:
    assert not wire.Command().on_line(["pong", "1"])
