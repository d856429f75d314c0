# SPDX-License-Identifier: GPL-2.0-only
"""The payload tests once more, on the real kvm-amd or kvm-intel of a host VM: there they run even without /dev/kvm."""

from __future__ import annotations

import os
from pathlib import Path

from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import find_kernel
from unikvm.units import GIB

TREE = Path(__file__).resolve().parents[2]
SECONDS = 600.0
# Thousands of exits each, which an emulated processor takes minutes for: they run where there is a /dev/kvm.
LONG = ("tests/payloads/test_hostile.py", "tests/payloads/test_loss.py")


def test_payloads_in_a_host_vm() -> None:
    """In one pytest run there; its report is what is shown when it fails."""
    environment = {
        "UNIKVM_PAYLOADS": os.environ["UNIKVM_PAYLOADS"],
        "PYTHONPATH": f"{TREE}/tools/kvm:{TREE}/tests",
    }
    argv = [
        str(TREE / "build/venv/bin/python3"),
        "-m",
        "pytest",
        "tests/payloads",
        *(f"--ignore={path}" for path in LONG),
    ]
    with HostVm(HostConfig(kernel=find_kernel(), init=init_binary(), memory=8 * GIB)) as host:
        done = host.exec(argv, cwd=str(TREE), env=environment, timeout=SECONDS)
    assert done.shell_status == 0, done.stdout.decode() + done.stderr.decode()
    assert b" passed" in done.stdout
