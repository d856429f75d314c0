# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM, beside a loaded kernel half: one case a call, named on the command line."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unikvm.memory import GuestMemory
from unikvm.observe import exits
from unikvm.sys import companion
from unikvm.sys.kvm import Kvm, Vcpu, Vm, run
from unikvm.uapi import kvm
from unikvm.uapi import unikvm as uapi

OUTS = 100
CODE_AT = 0x1000
# mov $OUTS, %cx; 1: out %al, $0x80; dec %cx; jnz 1b; hlt   (16-bit real mode)
CODE = b"\xb9" + OUTS.to_bytes(2, "little") + b"\xe6\x80\x49\x75\xfb\xf4"
SPIN = b"\xeb\xfe"  # jmp .


def start(vcpu: Vcpu) -> None:
    """Let it begin at CODE_AT."""
    sregs = vcpu.get("KVM_GET_SREGS", kvm.kvm_sregs)
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set("KVM_SET_SREGS", sregs)
    vcpu.set("KVM_SET_REGS", kvm.kvm_regs(rip=CODE_AT, rflags=2))
    vcpu.set("KVM_SET_MP_STATE", ctypes.c_uint32(0))  # type: ignore[arg-type]


@contextmanager
def guest(code: bytes = CODE, cpus: int = 1) -> Iterator[tuple[Vm, list[Vcpu]]]:
    """A VM whose vCPUs each run `code`; no in-kernel irqchip, so HLT exits."""
    host = Kvm()
    vm = host.create_vm()
    memory = GuestMemory([(0, 0x2000)])
    memory.write(CODE_AT, code)
    region = memory.regions[0]
    vm.set_user_memory_region(0, region.gpa, region.size, region.hva)
    vcpus = [vm.create_vcpu(index) for index in range(cpus)]
    for vcpu in vcpus:
        start(vcpu)
    try:
        yield vm, vcpus
    finally:
        for vcpu in vcpus:
            vcpu.close()
        vm.close()
        host.close()
        memory.close()


def to_halt(vcpu: Vcpu) -> int:
    """Run until HLT; how many exits came before it."""
    reason = vcpu.run_page[8:12].cast("I")
    count = 0
    while True:
        run(vcpu.fd, kvm.KVM_RUN)
        if reason[0] == kvm.KVM_EXIT_HLT:
            return count
        assert reason[0] == kvm.KVM_EXIT_IO, reason[0]
        count += 1


def device() -> int:
    return os.open(companion.DEVICE, os.O_RDWR)


def refused(number: int, call: Callable[[], object]) -> None:
    """`call` must fail with this errno."""
    found = 0
    try:
        call()
    except OSError as error:
        found = error.errno or -1
    assert found == number, f"{os.strerror(found)}, not {os.strerror(number)}"


def attach_request(fd: int, **fields: int) -> uapi.unikvm_attach:
    return uapi.unikvm_attach(**{"size": ctypes.sizeof(uapi.unikvm_attach), "vm_fd": fd, **fields})


def attach(vm_fd: int, **fields: int) -> int:
    fd = device()
    try:
        companion_fd: int = fcntl.ioctl(fd, uapi.UNIKVM_ATTACH_VM, attach_request(vm_fd, **fields))
        return companion_fd
    finally:
        os.close(fd)


def case_info() -> None:
    found = companion.info()
    assert found is not None
    assert (found.major, found.minor) == (uapi.UNIKVM_ABI_MAJOR, uapi.UNIKVM_ABI_MINOR)
    assert found.has_reasons
    companion.check_match(found)
    assert os.stat(companion.DEVICE).st_mode & 0o777 == 0o600
    raw = uapi.unikvm_info(size=ctypes.sizeof(uapi.unikvm_info) - 8)
    fd = device()
    refused(22, lambda: fcntl.ioctl(fd, uapi.UNIKVM_GET_INFO, raw))
    raw.size = 1 << 20
    refused(22, lambda: fcntl.ioctl(fd, uapi.UNIKVM_GET_INFO, raw))
    newer = bytearray(b"\xff" * 200)
    newer[0:4] = (200).to_bytes(4, "little")
    fcntl.ioctl(fd, uapi.UNIKVM_GET_INFO, newer)
    assert newer[ctypes.sizeof(uapi.unikvm_info) :] == bytes(200 - ctypes.sizeof(uapi.unikvm_info))


def case_counts() -> None:
    with guest() as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        assert to_halt(vcpus[0]) == OUTS
        seen = exits.read(attached)
        assert seen.by_reason["ioio"] == OUTS, seen
        assert seen.by_reason["hlt"] == 1, seen
        assert seen.by_user_reason == {"io": OUTS, "hlt": 1}, seen
        assert seen.user_exits == OUTS + 1
        assert seen.entries == seen.exits == sum(seen.by_reason.values())
        assert sum(seen.histograms["guest"]) == seen.exits
        assert sum(seen.histograms["kernel"]) == seen.exits  # to userspace or the next entry
        assert sum(seen.histograms["user"]) == OUTS  # the last exit has no entry after it
        assert seen.guest_seconds > 0
        assert seen.kernel_seconds > 0
        assert seen.user_seconds > 0
        attached.reset()
        assert exits.read(attached).exits == 0
        attached.close()


def case_smp() -> None:
    import threading

    with guest(cpus=8) as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        threads = [threading.Thread(target=to_halt, args=(vcpu,)) for vcpu in vcpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        slots = attached.slots()
        assert len(slots) == 8, len(slots)
        assert [slot.user_exits for slot in slots] == [OUTS + 1] * 8
        assert attached.area().lost == 0
        attached.close()


def case_vcpu_changes_threads() -> None:
    import threading

    with guest() as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        for _ in range(OUTS):
            thread = threading.Thread(target=run, args=(vcpus[0].fd, kvm.KVM_RUN))
            thread.start()
            thread.join()
        seen = exits.read(attached)
        assert len(attached.slots()) == 1
        assert seen.by_user_reason == {"io": OUTS}, seen
        attached.close()


def case_wrong_fd() -> None:
    reader, _ = os.pipe()
    named = os.open("/tmp/kvm-vm", os.O_RDWR | os.O_CREAT)
    memory = os.memfd_create("kvm-vm")
    with guest() as (_, vcpus):
        host = os.open("/dev/kvm", os.O_RDWR)
        refused(9, lambda: attach(9999))
        refused(9, lambda: attach(-1))
        for fd in (reader, named, memory, host, vcpus[0].fd, device()):
            refused(22, lambda fd=fd: attach(fd))  # type: ignore[misc]


def case_other_process() -> None:
    """A VM that came over a socket is its maker's."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        with guest() as (vm, _):
            theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [vm.fd]))])
            theirs.recv(1)
        os._exit(0)
    data = ours.recvmsg(1, socket.CMSG_SPACE(4))[1][0][2]
    refused(1, lambda: attach(array.array("i", data)[0]))
    ours.send(b"x")
    assert os.wait()[1] == 0


def case_fork() -> None:
    """A child inherits the descriptor, and may do nothing with it; the mapping is not inherited."""
    with guest() as (vm, _):
        attached = companion.attach(vm.fd)
        assert attached is not None
        child = os.fork()
        if child == 0:
            refused(1, lambda: fcntl.ioctl(attached.fd, uapi.UNIKVM_RESET))
            refused(1, lambda: mmap.mmap(attached.fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ))
            attached.area()  # touches what is not mapped here
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
        attached.close()


def case_reserved() -> None:
    with guest() as (vm, _):
        size = ctypes.sizeof(uapi.unikvm_attach)
        refused(22, lambda: attach(vm.fd, flags=1))
        refused(22, lambda: attach(vm.fd, reserved=1))
        refused(22, lambda: attach(vm.fd, size=size - 1))
        refused(22, lambda: attach(vm.fd, size=1 << 20))
        fd = device()
        newer = bytearray(bytes(attach_request(vm.fd, size=size + 8)) + b"\0\0\0\0\0\0\0\1")
        refused(7, lambda: fcntl.ioctl(fd, uapi.UNIKVM_ATTACH_VM, newer))
        newer[-1] = 0
        os.close(fcntl.ioctl(fd, uapi.UNIKVM_ATTACH_VM, newer))
        refused(25, lambda: fcntl.ioctl(fd, uapi.UNIKVM_RESET))
        refused(25, lambda: fcntl.ioctl(fd, 0x1234))


def case_pointers() -> None:
    """Unmapped pointers, and structs that end at the end of a mapping."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = device()
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    assert libc.munmap(ctypes.c_void_p(start + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE)) == 0
    end = start + mmap.PAGESIZE
    ctypes.c_uint32.from_address(end - 8).value = ctypes.sizeof(uapi.unikvm_attach)
    for request in (uapi.UNIKVM_GET_INFO, uapi.UNIKVM_ATTACH_VM):
        for pointer in (0, 1, end, end - 2, end - 8, (1 << 64) - 4096, 1 << 47):
            assert libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_void_p(pointer)) == -1
            assert ctypes.get_errno() in (14, 22), (request, hex(pointer), ctypes.get_errno())
            if pointer != end - 8:
                assert ctypes.get_errno() == 14, (request, hex(pointer), ctypes.get_errno())


def case_mmap() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with guest() as (vm, _):
        fd = attach(vm.fd)
        whole = mmap.PAGESIZE + uapi.UNIKVM_SLOTS * ctypes.sizeof(uapi.unikvm_slot)
        refused(1, lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
        refused(1, lambda: mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
        refused(22, lambda: mmap.mmap(fd, whole + 4096, mmap.MAP_SHARED, mmap.PROT_READ))
        refused(22, lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ, offset=(whole + 4095) & -4096))
        pages = mmap.mmap(fd, whole, mmap.MAP_SHARED, mmap.PROT_READ)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == 13
        os.close(fd)
        assert pages[0:4] != bytes(4)  # the mapping keeps the companion


def case_second_attach() -> None:
    with guest() as (vm, _), guest() as (other, _):
        fd = attach(vm.fd)
        refused(16, lambda: attach(vm.fd))
        refused(16, lambda: attach(other.fd))
        assert companion.attach(other.fd) is None
        os.close(fd)
        os.close(attach(other.fd))


def case_other_vm() -> None:
    """What the process's other VM does is not counted, not even on the same thread."""
    with guest() as (vm, vcpus), guest() as (_, others):
        attached = companion.attach(vm.fd)
        assert attached is not None
        assert to_halt(others[0]) == OUTS
        assert exits.read(attached).entries == 0
        run(vcpus[0].fd, kvm.KVM_RUN)
        start(others[0])
        assert to_halt(others[0]) == OUTS
        assert to_halt(vcpus[0]) == OUTS - 1
        seen = exits.read(attached)
        assert len(attached.slots()) == 1
        assert seen.by_user_reason == {"io": OUTS, "hlt": 1}, seen
        attached.close()


def case_returns_without_entry() -> None:
    """KVM_RUN that comes back at once is counted, and the time before it is the user's."""
    with guest() as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        run(vcpus[0].fd, kvm.KVM_RUN)
        immediate_exit = vcpus[0].run_page[1:2]
        immediate_exit[0] = 1
        time.sleep(0.3)
        refused(4, lambda: run(vcpus[0].fd, kvm.KVM_RUN))
        immediate_exit[0] = 0
        assert to_halt(vcpus[0]) == OUTS - 1
        seen = exits.read(attached)
        assert seen.by_user_reason == {"io": OUTS, "hlt": 1, "intr": 1}, seen
        assert seen.kernel_seconds < 0.2, seen
        assert seen.user_seconds > 0.3, seen
        assert sum(seen.histograms["kernel"]) == seen.exits, seen
        attached.close()


def case_returns_without_entry_of_another() -> None:
    """KVM_RUN that comes back at once is not that of the vCPU that this thread ran before."""
    with guest(cpus=2) as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        immediate_exits = [vcpu.run_page[1:2] for vcpu in vcpus]
        run(vcpus[0].fd, kvm.KVM_RUN)
        immediate_exits[1][0] = 1
        refused(4, lambda: run(vcpus[1].fd, kvm.KVM_RUN))  # it has no slot yet
        immediate_exits[1][0] = 0
        run(vcpus[1].fd, kvm.KVM_RUN)
        immediate_exits[0][0] = 1
        refused(4, lambda: run(vcpus[0].fd, kvm.KVM_RUN))
        intr = kvm.KVM_EXIT_INTR
        assert [slot.user_exits for slot in attached.slots()] == [2, 1]
        assert [slot.user_reason[intr] for slot in attached.slots()] == [1, 0]
        attached.close()


def case_more_vcpus_than_slots() -> None:
    """Those that find no slot are counted as entries, and in nobody else's slot."""
    with guest(cpus=uapi.UNIKVM_SLOTS + 1) as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        for vcpu in vcpus:
            run(vcpu.fd, kvm.KVM_RUN)
        assert to_halt(vcpus[-1]) == OUTS - 1
        slots = attached.slots()
        assert len(slots) == uapi.UNIKVM_SLOTS
        assert [slot.user_exits for slot in slots] == [1] * uapi.UNIKVM_SLOTS
        assert attached.area().lost >= OUTS + 1, attached.area().lost  # an interrupt's exit is followed by an entry
        attached.close()


def case_reset() -> None:
    """After a reset those vCPUs are shown that ran since, whichever they are."""
    with guest(cpus=3) as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        for vcpu in vcpus:
            run(vcpu.fd, kvm.KVM_RUN)
        attached.reset()
        assert attached.slots() == []
        assert to_halt(vcpus[2]) == OUTS - 1
        seen = exits.read(attached)
        assert seen.by_user_reason == {"io": OUTS - 1, "hlt": 1}, seen
        refused(25, lambda: fcntl.ioctl(attached.fd, uapi.UNIKVM_GET_INFO, bytearray(200)))
        refused(25, lambda: fcntl.ioctl(attached.fd, 0x1234))
        refused(22, lambda: os.read(attached.fd, 1))
        refused(22, lambda: os.write(attached.fd, b"x"))
        attached.close()


def case_structs_that_grew() -> None:
    """The size in an ioctl's number is its caller's: that of another version of the header."""
    fd = device()
    larger = 128
    number = uapi.UNIKVM_GET_INFO & ~(0x3FFF << 16) | larger << 16
    info = bytearray(larger.to_bytes(4, "little") + b"\xff" * (larger - 4))
    fcntl.ioctl(fd, number, info)
    assert int.from_bytes(info[4:6], "little") == uapi.UNIKVM_ABI_MAJOR
    assert info[104:] == bytes(24)
    with guest() as (vm, _):
        size = ctypes.sizeof(uapi.unikvm_attach) + 8
        number = uapi.UNIKVM_ATTACH_VM & ~(0x3FFF << 16) | size << 16
        os.close(fcntl.ioctl(fd, number, bytearray(bytes(attach_request(vm.fd, size=size)) + bytes(8))))


# push %rbx; mov %edi, %eax; mov %esi, %ebx; xchg %rdx, %rcx; int $0x80; pop %rbx; ret
IOCTL32 = b"\x53\x89\xf8\x89\xf3\x48\x87\xca\xcd\x80\x5b\xc3"


def case_32_bit_programs() -> None:
    """The 32-bit way into the kernel: the same structs, and the vCPU of KVM_RUN is found in other registers."""
    place = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)  # MAP_32BIT
    address = ctypes.addressof(ctypes.c_char.from_buffer(place))
    place[0 : len(IOCTL32)] = IOCTL32
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 4)(address)

    def ioctl32(fd: int, request: int, data: bytes = b"") -> int:
        place[256 : 256 + len(data)] = data
        result: int = call(54, fd, request, address + 256 if data else 0)
        return result

    info = uapi.unikvm_info(size=ctypes.sizeof(uapi.unikvm_info))
    assert ioctl32(device(), uapi.UNIKVM_GET_INFO, bytes(info)) == 0
    assert uapi.unikvm_info.from_buffer(place, 256).abi_major == uapi.UNIKVM_ABI_MAJOR
    with guest() as (vm, vcpus):
        fd = ioctl32(device(), uapi.UNIKVM_ATTACH_VM, bytes(attach_request(vm.fd)))
        area = mmap.mmap(fd, 2 * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        for _ in range(OUTS):
            assert ioctl32(vcpus[0].fd, kvm.KVM_RUN) == 0
        slot = uapi.unikvm_slot.from_buffer_copy(area[mmap.PAGESIZE :])
        assert slot.user_reason[kvm.KVM_EXIT_IO] == slot.user_exits == OUTS
        assert ioctl32(fd, uapi.UNIKVM_RESET) == 0
        assert area[mmap.PAGESIZE :] == bytes(mmap.PAGESIZE)
        os.close(fd)


def case_kernel_log() -> None:
    """Nothing of all this made the kernel complain."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    words = ("WARNING", "BUG", "Oops", "leak", "RIP:")
    bad = [line for line in log.splitlines() if any(word in line for word in words)]
    assert not bad, bad


if __name__ == "__main__":
    globals()[f"case_{sys.argv[1]}"]()
