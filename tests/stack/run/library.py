# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM: a Linux guest through the library, by the file's own boot protocol.

usage: library.py KERNEL INITRD
"""

from __future__ import annotations

import sys

from unikvm import Machine
from unikvm.machine.events import PowerOff

with Machine(
    kernel=sys.argv[1], initrd=sys.argv[2], cmdline="quiet console=ttyS0 panic=-1", console="serial"
) as machine:
    machine.start()
    machine.expect(b"# ", timeout=90)
    machine.send(b"echo $((6 * 7)); exit\r")
    end = machine.wait(timeout=60)
    assert isinstance(end, PowerOff), end
    assert b"\n42\r\n" in machine.console, bytes(machine.console)
