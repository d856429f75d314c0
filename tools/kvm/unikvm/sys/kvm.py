# SPDX-License-Identifier: GPL-2.0-only
"""The KVM API (Documentation/virt/kvm/api.rst): /dev/kvm, a VM, a vCPU. The only place that issues KVM ioctls.

A refused ioctl raises KvmError with the ioctl's name and errno.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys

from unikvm import cstruct as c
from unikvm.errors import CannotRun, KvmError
from unikvm.uapi import kvm as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from unikvm.uapi.kvm_irq import kvm_irq_routing_entry
    from unikvm.uapi.kvm_state import kvm_pit_state2

    S = TypeVar("S", bound=c.Structure)

CPUID_ENTRY_SIZE = c.sizeof(uapi.kvm_cpuid_entry2)
MAX_CPUID_ENTRIES = 256


def _ioctl(fd: int, name: str, argument: int | bytearray | c.Structure | None = None) -> int:
    """Issue the ioctl that linux/kvm.h calls `name`; integers up to 31 bits, or a buffer that KVM may write to."""
    request: int = getattr(uapi, name)
    try:
        # Passing the third argument costs 9,000 instructions even when it is 0; leave it out where there is none.
        if argument is None:
            return fcntl.ioctl(fd, request)
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise KvmError(f"{name} failed: {error.strerror}") from error


def _ioctl_address(fd: int, name: str, address: int) -> int:
    """As `_ioctl` for a full unsigned long, which fcntl.ioctl would cut to a signed int."""
    result = c.ioctl(fd, c.c_uint64(getattr(uapi, name)), c.c_uint64(address))
    if result < 0:
        raise KvmError(f"{name}({address:#x}) failed: {os.strerror(c.get_errno())}")
    return result


def _with_array(header: type[S], entries: bytes, count: int) -> bytearray:
    """A struct with a count in its first field and a flexible array behind it, as one buffer."""
    buffer = bytearray(c.sizeof(header)) + entries
    buffer[0:4] = count.to_bytes(4, "little")
    return buffer


def tsc_khz() -> int:
    """The frequency of this machine's TSC (KVM_GET_TSC_KHZ of a VM: Linux 5.16); 0 where there is no KVM to ask."""
    try:
        host = Kvm()
    except CannotRun:
        return 0
    try:
        vm = host.create_vm()
        try:
            return _ioctl(vm.fd, "KVM_GET_TSC_KHZ")
        finally:
            vm.close()
    except KvmError:
        return 0
    finally:
        host.close()


class Kvm:
    """/dev/kvm."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise CannotRun(f"no {path} on this host", hint="use --host vm, or load kvm-intel or kvm-amd") from None
        except PermissionError:
            raise CannotRun(
                f"no permission on {path}", hint="run as root, or join the group kvm: sudo usermod -aG kvm $USER"
            ) from None
        except OSError as error:
            raise CannotRun(f"cannot open {path}: {error.strerror}", hint="`unikvm doctor` says more") from error
        try:
            version = _ioctl(self.fd, "KVM_GET_API_VERSION")
        except KvmError as error:
            self.close()
            raise CannotRun(f"{path} is not KVM", hint="`unikvm doctor` says more") from error
        if version != uapi.KVM_API_VERSION:
            self.close()
            raise CannotRun(f"{path} speaks KVM API version {version}, not {uapi.KVM_API_VERSION}")

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when absent, else 1 or the capability's number."""
        return _ioctl(self.fd, "KVM_CHECK_EXTENSION", capability)

    def supported_cpuid(self) -> list[uapi.kvm_cpuid_entry2]:
        """KVM_GET_SUPPORTED_CPUID: what the host's KVM can offer to a guest."""
        empty = bytes(MAX_CPUID_ENTRIES * CPUID_ENTRY_SIZE)
        buffer = _with_array(uapi.kvm_cpuid2, empty, MAX_CPUID_ENTRIES)
        _ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", buffer)
        count = int.from_bytes(buffer[0:4], "little")
        start = c.sizeof(uapi.kvm_cpuid2)
        return [uapi.kvm_cpuid_entry2.from_buffer(buffer, start + i * CPUID_ENTRY_SIZE) for i in range(count)]

    def create_vm(self) -> Vm:
        return Vm(_ioctl(self.fd, "KVM_CREATE_VM"), _ioctl(self.fd, "KVM_GET_VCPU_MMAP_SIZE"))

    def close(self) -> None:
        os.close(self.fd)


class Vm:
    """One virtual machine."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size

    def set_tss_addr(self, gpa: int) -> None:
        """Three pages for Intel's virtual-8086 mode; KVM wants them below 4 GiB."""
        _ioctl_address(self.fd, "KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """One page for Intel's real mode without unrestricted guest. Before any vCPU is created."""
        _ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", bytearray(gpa.to_bytes(8, "little")))

    def create_irqchip(self) -> None:
        """In-kernel LAPIC, IOAPIC and 8259s."""
        _ioctl(self.fd, "KVM_CREATE_IRQCHIP")

    def create_pit(self) -> None:
        """In-kernel 8254. Without the dummy speaker port TSC calibration through port 0x61 fails."""
        _ioctl(self.fd, "KVM_CREATE_PIT2", uapi.kvm_pit_config(flags=uapi.KVM_PIT_SPEAKER_DUMMY))

    def pit(self) -> kvm_pit_state2:
        """State of the in-kernel 8254."""
        from unikvm.uapi.kvm_state import kvm_pit_state2

        state = kvm_pit_state2()
        _ioctl(self.fd, "KVM_GET_PIT2", state)
        return state

    def set_pit(self, state: kvm_pit_state2) -> None:
        """Put the in-kernel 8254 into `state`; its counters start again."""
        _ioctl(self.fd, "KVM_SET_PIT2", state)

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, flags: int = 0) -> None:
        """Map `size` bytes at host address `hva` to guest-physical `gpa`; size 0 removes the slot."""
        region = uapi.kvm_userspace_memory_region(
            slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva
        )
        _ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)

    def ioeventfd(
        self,
        address: int,
        length: int,
        fd: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Signal eventfd `fd` on a guest's write of `length` bytes (0: any) to `address`, without an exit."""
        from unikvm.uapi import kvm_irq

        flags = kvm_irq.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        flags |= kvm_irq.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= kvm_irq.KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch is not None else 0
        request = kvm_irq.kvm_ioeventfd(datamatch=datamatch or 0, addr=address, len=length, fd=fd, flags=flags)
        _ioctl(self.fd, "KVM_IOEVENTFD", request)

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        """Inject `gsi` whenever eventfd `fd` is signalled."""
        from unikvm.uapi import kvm_irq

        flags = kvm_irq.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        _ioctl(self.fd, "KVM_IRQFD", kvm_irq.kvm_irqfd(fd=fd, gsi=gsi, flags=flags))

    def set_gsi_routing(self, entries: Sequence[kvm_irq_routing_entry]) -> None:
        """Replace the whole interrupt routing table."""
        from unikvm.uapi import kvm_irq

        _ioctl(
            self.fd,
            "KVM_SET_GSI_ROUTING",
            _with_array(kvm_irq.kvm_irq_routing, b"".join(bytes(entry) for entry in entries), len(entries)),
        )

    def irq_line(self, gsi: int, level: bool) -> None:
        """Drive an interrupt line."""
        request = uapi.kvm_irq_level(level=int(level))
        request.irq = gsi
        _ioctl(self.fd, "KVM_IRQ_LINE", request)

    def coalesce(self, zone: c.Structure, on: bool) -> None:
        """Keep the guest's writes to `zone`, a kvm_coalesced_mmio_zone, in the VM's ring; or let them be exits."""
        _ioctl(self.fd, "KVM_REGISTER_COALESCED_MMIO" if on else "KVM_UNREGISTER_COALESCED_MMIO", zone)

    def enable(self, capability: int, argument: int) -> None:
        """KVM_ENABLE_CAP."""
        from unikvm.uapi.kvm_state import kvm_enable_cap

        request = kvm_enable_cap(cap=capability)
        request.args[0] = argument
        _ioctl(self.fd, "KVM_ENABLE_CAP", request)

    def create_vcpu(self, index: int, apic_id: int | None = None) -> Vcpu:
        """Create vCPU `index`, which KVM knows by its APIC ID; None: the same number."""
        return Vcpu(index, _ioctl(self.fd, "KVM_CREATE_VCPU", index if apic_id is None else apic_id), self._run_size)

    def close(self) -> None:
        os.close(self.fd)


class Vcpu:
    """One virtual CPU. Its ioctls belong to the thread that runs it."""

    def __init__(self, index: int, fd: int, run_size: int) -> None:
        self.index = index
        self.fd = fd
        self.run_map = mmap.mmap(fd, run_size, mmap.MAP_SHARED)
        self.run_page = memoryview(self.run_map)

    def get(self, name: str, struct: type[S]) -> S:
        """Read state through the KVM_GET_… ioctl `name` into a new `struct`."""
        value = struct()
        _ioctl(self.fd, name, value)
        return value

    def set(self, name: str, value: c.Structure) -> None:
        """Write state through the KVM_SET_… ioctl `name`."""
        _ioctl(self.fd, name, value)

    def set_cpuid(self, entries: Sequence[uapi.kvm_cpuid_entry2]) -> None:
        """KVM_SET_CPUID2. Before the first run."""
        data = b"".join(bytes(entry) for entry in entries)
        _ioctl(self.fd, "KVM_SET_CPUID2", _with_array(uapi.kvm_cpuid2, data, len(entries)))

    def set_msrs(self, msrs: Sequence[tuple[int, int]]) -> None:
        """KVM_SET_MSRS with (index, value) pairs; KvmError names the first that KVM refuses."""
        data = b"".join(bytes(uapi.kvm_msr_entry(index=index, data=value)) for index, value in msrs)
        done = _ioctl(self.fd, "KVM_SET_MSRS", _with_array(uapi.kvm_msrs, data, len(msrs)))
        if done != len(msrs):
            raise KvmError(f"KVM_SET_MSRS: KVM refused MSR {msrs[done][0]:#x}")

    def close(self) -> None:
        """Release the descriptor; the mapping, and with it the VM, goes with the last view of the run page."""
        self.run_page.release()
        try:
            self.run_map.close()
        except BufferError:
            pass
        os.close(self.fd)


def _run_by_ctypes(fd: int, request: int) -> int:
    if c.ioctl(fd, c.c_uint64(request), c.c_uint64(0)) < 0:
        raise OSError(c.get_errno(), "")
    return 0


# `run(vcpu.fd, uapi.KVM_RUN)` enters the guest. It returns when there is an exit to serve, and raises OSError: what
# `interrupted` says of it tells a kick from a failure. It is fcntl.ioctl itself, so that an exit costs no more than it
# has to; from Python 3.14 on that retries EINTR: with immediate_exit set on a vCPU thread it would spin for ever.
run: Callable[[int, int], int] = _run_by_ctypes if sys.version_info >= (3, 14) else fcntl.ioctl


def interrupted(error: OSError) -> None:
    """Return when `run` was ended by a signal; raise KvmError when it failed."""
    if error.errno not in (errno.EINTR, errno.EAGAIN):
        raise KvmError(f"KVM_RUN failed: {os.strerror(error.errno or 0)}") from error
