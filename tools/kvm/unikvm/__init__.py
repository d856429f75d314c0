# SPDX-License-Identifier: GPL-2.0-only
"""unikvm, the user half: a KVM-only virtual machine monitor.

from unikvm import Machine

with Machine(kernel="payload.elf") as machine:
    print(machine.run(timeout=10))
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.errors import UnikvmError
    from unikvm.machine.config import Config, Disk
    from unikvm.machine.machine import Machine

__all__ = ["Config", "Disk", "Machine", "UnikvmError"]

_HOMES = {
    "Config": "unikvm.machine.config",
    "Disk": "unikvm.machine.config",
    "Machine": "unikvm.machine.machine",
    "UnikvmError": "unikvm.errors",
}


def __getattr__(name: str) -> object:
    """Import the library's names when they are used: `import unikvm.errors` must not load the VMM."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unikvm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
