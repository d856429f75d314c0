# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share: where the build put things."""

from __future__ import annotations

import os
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


def newest(pattern: str) -> Path | None:
    """The newest of the build's files that match, over all host kernels."""
    return max((TREE / "build").glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


built = newest("*/tests/payloads/hello.elf")
if built:
    os.environ.setdefault("UNIKVM_PAYLOADS", str(built.parent))
