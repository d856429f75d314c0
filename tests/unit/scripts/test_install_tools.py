# SPDX-License-Identifier: GPL-2.0-only
"""scripts/install-tools and scripts/bootstrap: what they name, and what they do without a network or rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from style.tree import TREE, text


@pytest.fixture
def tools() -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "install_tools", "__file__": str(TREE / "scripts/install-tools")}
    exec(compile(text("scripts/install-tools"), "install-tools", "exec"), scope)
    return scope


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with nothing but what set-up reads."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/bootstrap", "scripts/install-tools", "pyproject.toml"):
        shutil.copy2(TREE / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("os_release", "family"),
    [
        ("ID=debian\nVERSION_ID=12\n", "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID=fedora\n", "fedora"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=arch\n", "arch"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "suse"),
        ("ID=nixos\n", ""),
        ("", ""),
    ],
)
def test_family(tools: dict[str, Any], os_release: str, family: str) -> None:
    assert tools["family_of"](os_release) == family


def test_packages_are_named_as_the_distribution_does(tools: dict[str, Any]) -> None:
    qemu = [tool for tool in tools["RUN"] if "qemu-system-x86_64" in tool.found]
    assert tools["packages_for"](qemu, "debian") == ["qemu-system-x86"]
    assert tools["packages_for"](qemu, "fedora") == ["qemu-system-x86-core"]
    for tool in tools["RUN"] + tools["TEST"]:
        assert len(tool.packages) == len(tools["INSTALLERS"])
        assert all(tool.packages)


def test_what_moved_to_another_package(tools: dict[str, Any], tmp_path: Path) -> None:
    """Where the first package has not brought it, the second one is installed."""
    there, moved = tmp_path / "there", tmp_path / "moved"
    wanted = tuple(tools["Tool"]((str(path),), ("first|second", "f", "a", "s")) for path in (there, moved))
    installed = []

    def apt_install(packages: list[str]) -> bool:
        installed.append(packages)
        {"first": there, "second": moved}[packages[0]].touch()
        return True

    tools.update(family=lambda: "debian", apt_install=apt_install, BUILD=tmp_path)
    assert tools["install_packages"](wanted, again=False)
    assert installed == [["first"], ["second"]]
    assert not (tmp_path / "setup-failed").exists()


def test_elsewhere_packages_are_named_and_nothing_is_installed(
    tools: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tools["Tool"](("/no/such/file",), ("d", "dnf-name", "a", "s"))
    tools["family"] = lambda: "fedora"
    assert not tools["install_packages"]((absent,), again=False)
    assert capsys.readouterr().err == "setup: missing; going on without. As root: dnf install dnf-name\n"
    tools["family"] = lambda: ""
    assert not tools["install_packages"]((absent,), again=False)
    assert "/no/such/file" in capsys.readouterr().err


def test_wrong_level_is_refused() -> None:
    done = subprocess.run([TREE / "scripts/bootstrap", "all"], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("usage: scripts/bootstrap")


def test_goes_on_without_a_network(tree: Path, tmp_path: Path) -> None:
    """pip fails, that is said, and there is an environment to go on with; the next time it is tried again."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_INDEX": "1",
    }
    command = [sys.executable, "-I", str(tree / "scripts/install-tools"), "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0
    assert "setup: that failed; going on with what is there" in done.stderr
    python = tree / "build/venv/bin/python3"
    assert subprocess.run([python, "-c", ""], check=False).returncode == 0
    assert not (tree / "build/setup-run").exists()


def test_cache_that_cannot_be_written_is_one_line(tree: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    command = [sys.executable, "-I", str(tree / "scripts/install-tools"), "run"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(blocked)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 125
    assert done.stderr.startswith("setup: cannot write to ")
    assert done.stderr.count("\n") == 1
