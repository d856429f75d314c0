# SPDX-License-Identifier: GPL-2.0-only
"""What /dev/kvm of this host is worth, measured with a payload: its existence says nothing about hardware."""

from __future__ import annotations

import time

from unikvm.errors import KvmError
from unikvm.memory import GuestMemory
from unikvm.sys.kvm import Kvm, run
from unikvm.uapi import kvm as uapi
from unikvm.uapi import kvm_state

LOOPS = 20_000
CODE_AT = 0x1000
# mov $LOOPS, %ecx; 1: dec %ecx; jnz 1b; out %al, $0xf4   (16-bit real mode)
CODE = b"\x66\xb9" + LOOPS.to_bytes(4, "little") + b"\x66\x49\x75\xfc\xe6\xf4"
INSTRUCTIONS = 2 + 2 * LOOPS
EMULATED_BELOW_MIPS = 50.0  # hardware runs this loop at hundreds to thousands, KVM's emulator at about 1


def measure_mips(path: str = "/dev/kvm") -> float:
    """Million guest instructions a second, from a payload of a known count (takes about 20 ms on an emulated KVM).

    Raises CannotRun when there is no usable KVM, KvmError when it cannot run the payload.
    """
    kvm = Kvm(path)
    vm = kvm.create_vm()
    memory = GuestMemory([(0, 0x2000)])
    memory.write(CODE_AT, CODE)
    region = memory.regions[0]
    vm.set_user_memory_region(0, region.gpa, region.size, region.hva)
    vcpu = vm.create_vcpu(0)
    try:
        sregs = vcpu.get("KVM_GET_SREGS", uapi.kvm_sregs)
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set("KVM_SET_SREGS", sregs)
        vcpu.set("KVM_SET_REGS", uapi.kvm_regs(rip=CODE_AT, rflags=2))
        start = time.perf_counter()
        run(vcpu.fd, uapi.KVM_RUN)
        seconds = time.perf_counter() - start
        reason = kvm_state.kvm_run.from_buffer(vcpu.run_map).exit_reason
        if reason != uapi.KVM_EXIT_IO:
            raise KvmError(f"the probe payload ended with KVM exit {reason}, not with its port write")
        return INSTRUCTIONS / seconds / 1e6
    finally:
        memory.close()
        vm.close()
        kvm.close()


def has_hardware_flag() -> bool:
    """Whether /proc/cpuinfo shows svm or vmx: a hint to check before anything is measured."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("flags"):
                return not {"svm", "vmx"}.isdisjoint(line.split())
    return False
