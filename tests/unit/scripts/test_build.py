# SPDX-License-Identifier: GPL-2.0-only
"""scripts/build: one build at a time, and going on with what can be built."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from style.tree import TREE
from unikvm import bundle

KERNEL_STUB = """
from unikvm.errors import CannotRun


def find_kernel(spec=None, *, progress=None):
    raise CannotRun("no such kernel" if spec else "no kernel is to be had", hint="it is a stub")


def kernel_headers(kernel, *, progress=None): ...
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which no kernel can be found and nothing is installed."""
    package = tmp_path / "tools/kvm/unikvm"
    (package / "images").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "images/__init__.py").touch()
    (package / "images/kernel.py").write_text(KERNEL_STUB)
    for module in ("errors.py", "bundle.py"):
        shutil.copy2(TREE / "tools/kvm/unikvm" / module, package / module)
    (tmp_path / "scripts").mkdir()
    shutil.copy2(TREE / "scripts/build", tmp_path / "scripts/build")
    (tmp_path / "build").mkdir()
    return tmp_path


def start(tree: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(tree / "scripts/build"), *arguments]
    environment = {**os.environ, "PATH": str(tree)}  # no meson
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_goes_on_without_kernel_and_tools(tree: Path) -> None:
    process = start(tree, "--print")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip() == str(tree / "build/no-kernel")
    assert "no kernel half: no kernel is to be had" in err
    assert "no meson or no ninja" in err
    assert list((tree / "tools/kvm/unikvm/__pycache__").glob("errors.*.pyc")), "the host VM would compile each time"
    assert (tree / "build" / bundle.NAME).exists()


def test_kernel_that_was_asked_for_must_be_there(tree: Path) -> None:
    process = start(tree, "--host-kernel", "linux-image-none")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 125
    assert err.count("\n") == 1
    assert "no such kernel" in err


def test_second_build_waits(tree: Path) -> None:
    with (tree / "build/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tree)
        assert process.stderr
        assert process.stderr.readline() == "build: waiting for the other build to end\n"
        time.sleep(0.2)
        assert process.poll() is None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
