# SPDX-License-Identifier: GPL-2.0-only
"""The payload tests on the real kvm-amd or kvm-intel of a host VM: once more, or where there is no /dev/kvm, at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from payloads.conftest import has_kvm
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import find_kernel
from unikvm.units import GIB

TREE = Path(__file__).resolve().parents[2]
SECONDS = 3000.0
# Thousands of exits each, which an emulated processor takes minutes for: once is enough.
LONG = ("test_hostile.py", "test_loss.py")
ROUNDS = "10"  # of test_loss.py: in each a VMM starts, which takes more than a second there
pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that has direct I/O in the host VM: /tmp there has none."""
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def host(share: Path) -> Iterator[HostVm]:
    config = HostConfig(kernel=find_kernel(), init=init_binary(), shares=(str(share),), memory=8 * GIB)
    with HostVm(config) as running:
        yield running


def passes(host: HostVm, *words: str) -> None:
    """`pytest WORDS` in the host VM; its report is what is shown when it fails."""
    environment = {
        "UNIKVM_PAYLOADS": os.environ["UNIKVM_PAYLOADS"],
        "UNIKVM_ROUNDS": ROUNDS,
        "PYTHONPATH": f"{TREE}/tools/kvm:{TREE}/tests",
    }
    argv = [str(TREE / "build/venv/bin/python3"), "-m", "pytest", "--timeout", str(SECONDS), *words]
    done = host.exec(argv, cwd=str(TREE), env=environment, timeout=SECONDS)
    assert done.shell_status == 0, done.stdout.decode() + done.stderr.decode()
    assert b" passed" in done.stdout


def test_payloads(host: HostVm) -> None:
    passes(host, "tests/payloads", *(f"--ignore=tests/payloads/{name}" for name in LONG))


def test_direct_disks(host: HostVm, share: Path) -> None:
    passes(host, "tests/payloads/test_disks.py", "-k", "direct", f"--basetemp={share}/tmp")


@pytest.mark.skipif(has_kvm(), reason="ran on this machine's /dev/kvm")
@pytest.mark.parametrize("name", LONG)
def test_long_payloads(host: HostVm, share: Path, name: str) -> None:
    passes(host, f"tests/payloads/{name}", *([f"--basetemp={share}/tmp"] if name == "test_loss.py" else []))
