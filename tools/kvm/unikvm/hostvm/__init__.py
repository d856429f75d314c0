# SPDX-License-Identifier: GPL-2.0-only
"""The host VM: a host kernel of the developer's choice under QEMU, sharing the machine's root file system.

with HostVm(HostConfig(kernel=find_kernel(...), init="build/.../init")) as host:
    print(host.exec(["uname", "-r"]).stdout)

Documentation/host-vm.md tells how it works.
"""

from __future__ import annotations
