# SPDX-License-Identifier: GPL-2.0-only
"""Payloads for the tests: from the build folder, or built here when there is none newer than its sources."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from payloads.build import build
from unikvm.errors import CannotRun
from unikvm.sys.kvm import Kvm


def has_kvm() -> bool:
    """Whether payloads run on this machine."""
    try:
        Kvm().close()
    except CannotRun:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without /dev/kvm these tests run in the host VM alone: tests/stack/test_payloads.py."""
    if not has_kvm():
        skip = pytest.mark.skip(reason="no usable /dev/kvm: tests/stack/test_payloads.py runs them in the host VM")
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(skip)


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
