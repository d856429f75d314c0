# SPDX-License-Identifier: GPL-2.0-only
"""The examples of Documentation/library.md, run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unikvm.errors import UnikvmError
from unikvm.machine.machine import Machine

PAGE = Path(__file__).resolve().parents[2] / "Documentation/library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, payload: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    code = EXAMPLES[number].replace("payload.elf", payload("hello.elf"))
    exec(compile("from unikvm import Machine\n" + code, str(PAGE), "exec"), {})
    if "print" in code:
        assert "DebugExit(status=0" in capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


def test_the_end_of_a_run_is_no_time_to_wait(payload: Callable[[str], str]) -> None:
    with Machine(kernel=payload("hello.elf"), memory="32M", console="serial") as machine:
        machine.start()
        assert b"hello" in machine.expect(b"hello")
        with pytest.raises(UnikvmError, match=r"ended before the console showed b'never': DebugExit\(status=0"):
            machine.expect(b"never", 600)
