# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm version`: which commit each half is, and whether they match.

examples:
  unikvm version
  unikvm version --json
"""

from __future__ import annotations

import argparse
import sys

from unikvm.errors import CANNOT_RUN, CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.sys.companion import Info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def main(args: argparse.Namespace) -> int:
    import unikvm.sys.companion as companion
    from unikvm.release import release

    user = release()
    kernel = companion.info()
    match = kernel is not None and matches(kernel)
    if args.json:
        import json

        fields = {"user_half": user, "kernel_half": kernel.release if kernel else None, "match": match}
        fields["abi"] = f"{kernel.major}.{kernel.minor}" if kernel else None
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        sys.stdout.write(f"user half    {user}\n")
        if kernel is None:
            sys.stdout.write("kernel half  not loaded (unikvm works without; `make kvm-run` loads it in a host VM)\n")
        else:
            sys.stdout.write(f"kernel half  {kernel.release}, ABI {kernel.major}.{kernel.minor}\n")
            sys.stdout.write(
                "they match\n" if match else "they do NOT match: `make build` and load the kernel half anew\n"
            )
    return 0 if kernel is None or match else CANNOT_RUN


def matches(kernel: Info) -> bool:
    """By what a run goes by: the ABI and the kernel half's sources. A commit elsewhere in the tree parts nothing."""
    import unikvm.sys.companion as companion

    try:
        companion.check_match(kernel)
    except CannotRun:
        return False
    return True
