# SPDX-License-Identifier: GPL-2.0-only
"""TEST: the CMOS says how many CPUs there are besides the first: `unikvm run` ends with that as its status.

usage: cmos.py
"""

from __future__ import annotations

import os
import tempfile

# mov $0x5f, %al; out %al, $0x70; in $0x71, %al; out %al, $0xf4; hlt; jmp to the hlt   (16-bit real mode)
CODE = b"\xb0\x5f\xe6\x70\xe4\x71\xe6\xf4\xf4\xeb\xfd"

path = os.path.join(tempfile.mkdtemp(), "cmos.bin")
with open(path, "wb") as file:
    file.write(CODE)
os.execvp("unikvm", ["unikvm", "run", "--host", "local", "--timeout", "10", path])
