# SPDX-License-Identifier: GPL-2.0-only
"""PC firmware (--firmware). Imported for runs that ask for it."""

from __future__ import annotations

import os

from unikvm.cli.options.values import split
from unikvm.cli.plan import Plan, say
from unikvm.errors import CannotRun
from unikvm.images.firmware import find_firmware, fresh_copy
from unikvm.machine.config import Firmware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BIOS_SIZE = 256 << 10  # of the largest


def is_uefi(firmware: Firmware) -> bool:
    """Whether it is a UEFI's, and no BIOS."""
    return bool(firmware.vars) or os.path.getsize(firmware.code) > _BIOS_SIZE


def add(plan: Plan, args: Any) -> Plan:
    """`plan` with the firmware that `args` ask for, its images found. CannotRun where that cannot be."""
    for option, given in (
        ("--kernel", args.kernel or args.image),
        ("--initrd", args.initrd),
        ("--append", args.append),
    ):
        if given:
            raise CannotRun(f"--firmware and {option} do not go together", hint="firmware boots what is on a --disk")
    for option, given in (("-- CMD", args.command), ("--root", args.root), ("--rwdir", args.rwdir)):
        if given:
            raise CannotRun(f"--firmware and {option} do not go together", hint="that is for kernels with our own init")
    if plan.config.console == "virtio":
        raise CannotRun(
            "firmware does not know the virtio console", hint="leave out --console: the serial port is used"
        )
    progress = (lambda _text: None) if plan.quiet else say
    spec, given = split("--firmware", args.firmware, flags=("debug",), keys=("vars",))
    found = find_firmware(spec, progress=progress)
    variables = found.vars
    if "vars" in given:
        variables = os.path.abspath(given["vars"])
        if not os.path.exists(variables):
            if not found.vars:
                raise CannotRun(f"{spec} has no variables to begin {variables} with", hint="vars= is for OVMF")
            fresh_copy(found.vars, variables)
            progress(f"made {variables}")
    firmware = Firmware(found.code, variables, "vars" in given, "debug" in given)
    return plan.replace(config=plan.config.replace(firmware=firmware), spec=f"firmware {spec}")
