# SPDX-License-Identifier: GPL-2.0-only
"""The Ctrl-A escape, and a terminal that is restored."""

from __future__ import annotations

import os
import pty
import termios

import pytest

from unikvm.cli.terminal import EscapeFilter, Output, StatusLine, raw_mode


@pytest.mark.parametrize(
    ("chunks", "through", "left"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"\x01x"], b"", True),
        ([b"a\x01", b"xb"], b"ab", True),
        ([b"\x01a"], b"\x01", False),
        ([b"\x01\x01"], b"\x01", False),
        ([b"\x01q"], b"\x01q", False),
        ([b"1\x01h2"], b"12", False),
    ],
)
def test_escape(chunks: list[bytes], through: bytes, left: bool) -> None:
    leaves: list[bool] = []
    shown: list[bytes] = []
    escape = EscapeFilter(lambda: leaves.append(True), shown.append)
    assert b"".join(escape.feed(chunk) for chunk in chunks) == through
    assert bool(leaves) == left
    assert bool(shown) == (b"h" in b"".join(chunks))


def test_raw_mode_is_undone_by_an_exception() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    echo = []

    def fail() -> None:
        with raw_mode(slave):
            echo.append(termios.tcgetattr(slave)[3] & termios.ECHO)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert echo == [0]
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(("term", "shown"), [("xterm", True), ("dumb", False)])
def test_a_status_line_vanishes(monkeypatch: pytest.MonkeyPatch, term: str, shown: bool) -> None:
    """It is never wider than the terminal: of one that goes round the edge the half would stay."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (10, 20))
    monkeypatch.setenv("TERM", term)
    errors = os.dup(2)
    os.dup2(slave, 2)
    try:
        line = StatusLine()
        line.show("loading the kernel half ...")
        line.clear()
        line.clear()
    finally:
        os.dup2(errors, 2)
        os.close(errors)
    os.write(slave, b"end")
    expected = b"\r\x1b[Kunikvm: loading the\r\x1b[K" if shown else b""
    seen = b""
    while not seen.endswith(b"end"):  # a terminal may give in parts what was written in parts
        seen += os.read(master, 100)
    assert seen == expected + b"end"
    os.close(master)
    os.close(slave)


def test_raw_mode_leaves_a_pipe_alone() -> None:
    reader, writer = os.pipe()
    with raw_mode(reader):
        pass
    os.close(reader)
    os.close(writer)


def test_output_waits_for_its_reader_until_the_run_is_over() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    asked: list[int] = []
    output.ended = lambda: len(asked) > 1 or asked.append(1) or False  # type: ignore[func-returns-value]
    output.write(bytes(1 << 20))
    assert len(asked) == 2
    assert len(os.read(reader, 1 << 20)) > 60000
    os.close(reader)
    output.write(b"nobody")
    assert output.fd == -1
    os.close(writer)


def test_output_to_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        output = Output(full.fileno())
        for _ in range(3):
            output.write(b"text")
    assert capsys.readouterr().err == "unikvm: the rest of the output is lost: No space left on device\n"
