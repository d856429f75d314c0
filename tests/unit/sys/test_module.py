# SPDX-License-Identifier: GPL-2.0-only
"""Refusals of module insertion; that it works, tests/stack/run/test_local.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.sys.module import insert


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ko").write_bytes(b"no module")
    with pytest.raises(CannotRun, match="the kernel does not take"):
        insert(str(tmp_path / "x.ko"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="cannot read"):
        insert(str(tmp_path / "none.ko"))
