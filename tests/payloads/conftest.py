# SPDX-License-Identifier: GPL-2.0-only
"""Payloads for the tests: from the build folder, or built here when there is none newer than its sources."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from payloads.build import build


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a payload by its name, for instance `hello.elf`. UNIKVM_PAYLOADS names the folder they are in."""
    built = os.environ.get("UNIKVM_PAYLOADS")
    folder = tmp_path_factory.mktemp("payloads")

    def path(name: str) -> str:
        if built and (Path(built) / name).exists():
            return str(Path(built) / name)
        target = folder / name
        if not target.exists():
            build(target)
        return str(target)

    return path
