# SPDX-License-Identifier: GPL-2.0-only
"""The vCPUs of a machine: how many this host can have, what each is, and the threads that run them."""

from __future__ import annotations

import os

from unikvm.arch.x86_64 import cpuid, msr
from unikvm.arch.x86_64.topology import XAPIC_IDS
from unikvm.errors import CannotRun
from unikvm.machine.vcpu import VcpuThread
from unikvm.sys.kvm import Kvm, Vcpu, Vm
from unikvm.uapi import kvm as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.boot.image import Entry
    from unikvm.machine.builder import Parts
    from unikvm.machine.config import Config

MANY = 8  # from here on it is worth while to ask whether the host can do so much
DESCRIPTORS = 8192  # wanted by a machine with many vCPUs, or with devices that come


def check_host(config: Config, kvm: Kvm) -> None:
    """What the host must be good for before anything is made. CannotRun where it is not."""
    most = config.all_cpus
    if most > MANY:
        limit = kvm.check_extension(uapi.KVM_CAP_MAX_VCPUS) or kvm.check_extension(uapi.KVM_CAP_NR_VCPUS)
        if most > limit:
            raise CannotRun(f"this host's KVM has at most {limit} vCPUs, and {most} are asked for", hint="--cpus")
        ids = kvm.check_extension(uapi.KVM_CAP_MAX_VCPU_ID) or limit
        last = config.all_topology.last_id
        if last >= ids:
            raise CannotRun(
                f"APIC ID {last} is more than this host's KVM can do ({ids - 1})",
                hint="fewer sockets, or cores and threads that are powers of two",
            )
        if last >= XAPIC_IDS and not kvm.check_extension(uapi.KVM_CAP_X2APIC_API):
            raise CannotRun(f"this host's KVM sends no interrupts to APIC ID {last}", hint="fewer sockets or threads")
    if config.pin:
        there = os.sched_getaffinity(0)
        missing = sorted(set(config.pin) - there)
        if missing:
            raise CannotRun(
                f"--cpus pin=: there is no CPU {missing[0]} for this process on the host",
                hint=f"of {','.join(map(str, sorted(there)))}",
            )
    if most > MANY or config.hotplug:
        _raise_descriptors()


def _raise_descriptors() -> None:
    """Each vCPU and each queue has descriptors; the soft limit is often 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Processors:
    """Creates vCPUs, all of one model."""

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self._parts = parts
        self._topology = config.all_topology
        supported = parts.kvm.supported_cpuid()
        if config.cpu_model != "host":
            from unikvm.arch.x86_64 import models

            supported = models.subset(supported, config.cpu_model)
        tsc_deadline = bool(parts.kvm.check_extension(uapi.KVM_CAP_TSC_DEADLINE_TIMER))
        self._entries = cpuid.build(supported, topology=self._topology, tsc_deadline=tsc_deadline)
        if self._topology.last_id >= XAPIC_IDS - 1:
            _use_long_ids(parts.vm)

    def create(self, index: int) -> VcpuThread:
        """vCPU `index`, which waits for the guest's INIT and SIPI; vCPU 0 is the one that boots."""
        parts = self._parts
        vcpu = parts.vm.create_vcpu(index, self._topology.apic_id(index))
        parts.closables.append(vcpu.close)
        cpuid.personalise(self._entries, self._topology, index)
        vcpu.set_cpuid(self._entries)
        if parts.config.firmware is None:  # which sets up its own
            vcpu.set_msrs(msr.initial())
        return self.thread(vcpu)

    def thread(self, vcpu: Vcpu) -> VcpuThread:
        """A new thread for `vcpu`, on its CPU of the host where there is one for it."""
        parts = self._parts
        pin = parts.config.pin
        cpu = pin[vcpu.index % len(pin)] if pin else None
        return VcpuThread(vcpu, parts.pio, parts.mmio, parts.post, pin=cpu)

    def boot(self, entry: Entry) -> None:
        """Make those that there are at the start; the first one enters the kernel."""
        from unikvm.arch.x86_64 import state

        for index in range(self._parts.config.cpus):
            thread = self.create(index)
            if index == 0:
                sregs = thread.vcpu.get("KVM_GET_SREGS", uapi.kvm_sregs)
                regs = uapi.kvm_regs()
                state.enter(entry.mode, entry.registers, sregs, regs, self._parts.memory)
                thread.vcpu.set("KVM_SET_SREGS", sregs)
                thread.vcpu.set("KVM_SET_REGS", regs)
            self._parts.vcpus.append(thread)

    def add(self, index: int) -> VcpuThread:
        """`create` while others run: KVM finds the target of an interrupt by a table that it makes when a local APIC
        changes, and has made for this one before it was among the VM's."""
        from unikvm.uapi.kvm_state import kvm_lapic_state

        thread = self.create(index)
        thread.vcpu.set("KVM_SET_LAPIC", thread.vcpu.get("KVM_GET_LAPIC", kvm_lapic_state))
        return thread

    def revive(self, old: VcpuThread) -> VcpuThread:
        """A new thread for the vCPU of `old`, which was stopped: it waits for INIT and SIPI as after power-on."""
        from unikvm.uapi.kvm_state import kvm_mp_state

        old.join()
        old.settle()
        old.vcpu.set("KVM_SET_MP_STATE", kvm_mp_state(mp_state=uapi.KVM_MP_STATE_UNINITIALIZED))
        return self.thread(old.vcpu)


def _use_long_ids(vm: Vm) -> None:
    """APIC IDs of 32 bits in interrupt messages, and 255 is an ID as any other (api.rst, KVM_CAP_X2APIC_API)."""
    from unikvm.uapi.kvm_state import KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS

    vm.enable(uapi.KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
