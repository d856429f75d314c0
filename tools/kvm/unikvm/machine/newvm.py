# SPDX-License-Identifier: GPL-2.0-only
"""A VM without memory and vCPUs: what a machine begins with."""

from __future__ import annotations

from unikvm.arch.x86_64 import layout
from unikvm.sys.kvm import Kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.memory import GuestMemory


class NewVm:
    """/dev/kvm, and a VM of it with its interrupt controllers. CannotRun where there is no usable /dev/kvm.

    Since Linux 6.18 these leave a grace period of RCU behind, two or three ticks of the kernel's clock, which the next
    change of the memory slots waits for: make the VM first and `place` its memory last.
    """

    def __init__(self) -> None:
        self.kvm = Kvm()
        try:
            self.vm = self.kvm.create_vm()
        except BaseException:
            self.kvm.close()
            raise
        try:
            self.vm.set_tss_addr(layout.KVM_TSS)
            self.vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
            self.vm.create_irqchip()
        except BaseException:
            self.close()
            raise

    def place(self, memory: GuestMemory) -> None:
        """Give the VM its RAM."""
        for slot, region in enumerate(memory.regions):
            self.vm.set_user_memory_region(slot, region.gpa, region.size, region.hva)

    def close(self) -> None:
        """Release both."""
        self.vm.close()
        self.kvm.close()
