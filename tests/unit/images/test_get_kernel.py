# SPDX-License-Identifier: GPL-2.0-only
"""scripts/get-kernel: what a shell sees of finding kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unit.images.conftest import RELEASE, make_bzimage, make_elf

TREE = Path(__file__).resolve().parents[3]


def get_kernel(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, str(TREE / "scripts/get-kernel"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert not done.returncode, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_prints_where_a_kernel_is(save: Callable[[str, bytes], str]) -> None:
    path = save("bzImage", make_bzimage(b"x"))
    assert answer(get_kernel(path)) == {"image": path, "release": RELEASE, "modules": ""}


def test_a_failure_is_one_line() -> None:
    done = get_kernel("/no/such")
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr == "get-kernel: no such kernel: /no/such\n"


def test_any_python_will_do(save: Callable[[str, bytes], str]) -> None:
    """Also one that is not the tree's, which then has to do without what `make setup` installed."""
    python = "/usr/bin/python3"
    if not os.access(python, os.X_OK):
        pytest.skip(f"there is no {python}")
    assert answer(get_kernel(save("bzImage", make_bzimage(b"x")), python=python))["release"] == RELEASE


def test_the_elf_and_the_build_tree(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(make_elf())
    (tmp_path / "modules.order").touch()
    (tmp_path / "Module.symvers").touch()
    found = answer(get_kernel(str(tmp_path), "--vmlinux", "--headers"))
    assert found["vmlinux"] == found["image"] == str(tmp_path / "vmlinux")
    assert found["headers"] == str(tmp_path)
