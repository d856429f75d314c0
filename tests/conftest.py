# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share: where the build put things, and signals that do what they do elsewhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


def newest(pattern: str) -> Path | None:
    """The newest of the build's files that match, over all host kernels."""
    return max((TREE / "build").glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


built = newest("*/tests/payloads/hello.elf")
if built:
    os.environ.setdefault("UNIKVM_PAYLOADS", str(built.parent))

# A shell script ignores SIGINT in what it starts with `&`, and so would every process of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
