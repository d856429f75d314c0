# SPDX-License-Identifier: GPL-2.0-only
"""Completion scripts: made for every shell, and names of guests where a guest is meant."""

from __future__ import annotations

import argparse
import subprocess

import pytest

from unikvm.cli import completion

pytest.importorskip("shtab")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert completion.main(argparse.Namespace(shell=shell)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["exec", "shell", "stat", "stop"])
def test_bash_completes_guests(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = f'unikvm() {{ test "$*" = "list --names" && echo lab web; }}; COMP_WORDS=(unikvm {command} l); COMP_CWORD=2'
    text = f'{script("bash", capsys)}\n{ask}\n_shtab_unikvm; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["lab"], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert "doctor" in text
    assert ("_unikvm_guests" in text) == (shell == "zsh")
