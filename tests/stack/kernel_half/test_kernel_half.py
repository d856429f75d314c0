# SPDX-License-Identifier: GPL-2.0-only
"""The kernel half in a host VM, on Debian's 6.1 and 6.12: each case of lifetimes.py and inside.py is a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import Kernel, find_kernel, kernel_headers
from unikvm.images.modules import resolve
from unikvm.observe.reasons import module_parameters

TREE = Path(__file__).resolve().parents[3]
PYTHON = TREE / "build/venv/bin/python3"
CASES = [  # the last one reads the kernel's log
    pytest.param(path, line.split("(")[0].removeprefix("def case_"), id=line.split("(")[0].removeprefix("def case_"))
    for path in (Path(__file__).with_name(name) for name in ("lifetimes.py", "inside.py"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("def case_")
]
KERNELS = [None, pytest.param("linux-image-6.12-cloud-amd64", marks=pytest.mark.network)]


def build(kernel: Kernel, out: Path, *more: str) -> str:
    """Build the kernel half, with sparse and W=1 where every warning is an error."""
    command = [str(PYTHON), str(TREE / "scripts/build-module"), kernel_headers(kernel), str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(out / "unikvm.ko")


@pytest.fixture(scope="module", params=KERNELS, ids=["6.1", "6.12"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostVm, str]]:
    """A host VM with the kernel half loaded, and the path of its module."""
    kernel = find_kernel(request.param)
    module = build(kernel, tmp_path_factory.mktemp("module") / kernel.release, "--check")
    with HostVm(HostConfig(kernel=kernel, init=init_binary())) as running:
        running.insmod(module, module_parameters(kernel))
        yield running, module


@pytest.mark.parametrize(("script", "case"), CASES)
def test_case(host: tuple[HostVm, str], script: Path, case: str) -> None:
    running, module = host
    kernel = running.config.kernel
    environment = {
        "PYTHONPATH": f"{TREE}/tools/kvm:{TREE}/tests",
        "UNIKVM_KO": module,
        "UNIKVM_PARAMETERS": module_parameters(kernel),
        "UNIKVM_KVM_KOS": " ".join(resolve(kernel.modules, kernel.release, ["kvm", "kvm-amd"])[-2:]),
    }
    done = running.exec([str(PYTHON), str(script), case], env=environment, timeout=120)
    assert done.shell_status == 0, done.stderr.decode()
