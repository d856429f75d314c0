# SPDX-License-Identifier: GPL-2.0-only
"""What unit tests of several rooms share: the guest's init, built for this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

GUEST = Path(__file__).parents[2] / "tools" / "kvm" / "guest"


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """init with the undefined-behaviour sanitizer."""
    binary = tmp_path_factory.mktemp("init") / "init"
    sources = sorted(map(str, GUEST.glob("*.c")))
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    subprocess.run(["gcc", *flags, "-o", str(binary), *sources], check=True)
    return str(binary)
