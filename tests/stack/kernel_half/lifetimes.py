# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the host VM as inside.py does: modules that come and go, processes that are killed, and what is left."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from stack.kernel_half.inside import OUTS, SPIN, attach, case_counts, guest, refused, to_halt
from unikvm.images.modules import decompressed
from unikvm.observe import exits
from unikvm.sys import companion
from unikvm.sys.kvm import Vcpu, run
from unikvm.uapi import kvm

FOREVER = b"\xe6\x80\xeb\xfc"  # 1: out %al, $0x80; jmp 1b
STRESS_SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))


def module_call(number: int, *arguments: object) -> None:
    """A system call for modules; the C library has none, and kmod is not on every machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def insmod(path: str, parameters: str = "") -> None:
    image = decompressed(path)
    module_call(175, image, ctypes.c_ulong(len(image)), parameters.encode())


def rmmod(name: str) -> None:
    module_call(176, name.encode(), ctypes.c_int(os.O_NONBLOCK))


def case_rmmod_while_attached() -> None:
    with guest() as (vm, _):
        fd = attach(vm.fd)
        refused(11, lambda: rmmod("unikvm"))
        os.close(fd)
    rmmod("unikvm")
    assert companion.info() is None
    insmod(os.environ["UNIKVM_KO"], os.environ["UNIKVM_PARAMETERS"])
    case_counts()


def loaded() -> list[str]:
    return [line.split()[0] for line in open("/proc/modules", encoding="ascii")]


def remove_kvm() -> None:
    rmmod("kvm_amd" if "kvm_amd" in loaded() else "kvm_intel")
    rmmod("kvm")


def insert_kvm() -> None:
    """What is missing of it."""
    for path in os.environ["UNIKVM_KVM_KOS"].split():
        if os.path.basename(path).partition(".")[0].replace("-", "_") not in loaded():
            insmod(path)


def remove_half() -> None:
    rmmod("unikvm")


def insert_half() -> None:
    if "unikvm" not in loaded():
        insmod(os.environ["UNIKVM_KO"], os.environ["UNIKVM_PARAMETERS"])


def case_kvm_unloaded_below() -> None:
    """kvm.ko goes and comes back while the kernel half stays; its probes follow."""
    case_counts()
    remove_kvm()
    assert companion.info() is not None
    insert_kvm()
    time.sleep(0.2)  # its tracepoints are taken by a work item
    case_counts()


def case_killed() -> None:
    """kill -9 of a VMM whose vCPU runs gives everything back."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        with guest(SPIN) as (vm, vcpus):
            attach(vm.fd)
            theirs.send(b"x")
            run(vcpus[0].fd, kvm.KVM_RUN)
    ours.recv(1)
    time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    comes_true(lambda: uses() == 0)
    case_counts()


def comes_true(condition: Callable[[], bool]) -> None:
    """Within five seconds."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    assert condition()


def uses() -> int:
    return int(open("/sys/module/unikvm/refcnt", encoding="ascii").read())


def vmalloc_used() -> int:
    """Pages that the kernel half's areas have, in kB."""
    return sum(
        int(line.split()[1]) for line in open("/proc/vmallocinfo", encoding="ascii") if "unikvm" in line
    ) >> 10  # fmt: skip


def case_nothing_leaks() -> None:
    before = vmalloc_used()
    with guest() as (vm, vcpus):
        for _ in range(200):
            attached = companion.attach(vm.fd)
            assert attached is not None
            run(vcpus[0].fd, kvm.KVM_RUN)
            assert vmalloc_used() > before
            attached.close()
    comes_true(lambda: vmalloc_used() == before)  # what probes may see is freed when they cannot any more
    assert uses() == 0


def case_closed_while_running() -> None:
    """Companions come and go beside a vCPU that never stops."""
    before = vmalloc_used()
    with guest(FOREVER) as (vm, vcpus):
        ending = threading.Event()

        def work() -> None:
            while not ending.is_set():
                run(vcpus[0].fd, kvm.KVM_RUN)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(30):
            attached = companion.attach(vm.fd)
            assert attached is not None
            while exits.read(attached).exits < 10:
                time.sleep(0)
            attached.close()
        ending.set()
        thread.join()
    comes_true(lambda: vmalloc_used() == before)
    assert uses() == 0


def case_outlives_its_vm() -> None:
    """A companion whose VM is gone counts nobody else's exits, whatever pointers KVM uses again."""
    with guest(cpus=4) as (vm, vcpus):
        attached = companion.attach(vm.fd)
        assert attached is not None
        for vcpu in vcpus:
            run(vcpu.fd, kvm.KVM_RUN)
    entries = exits.read(attached).entries
    for _ in range(50):
        with guest(cpus=4) as (_, vcpus):
            for vcpu in vcpus:
                run(vcpu.fd, kvm.KVM_RUN)
    assert exits.read(attached).entries == entries
    attached.close()


def case_wrong_offsets() -> None:
    """Offsets of another kernel make reasons wrong, and nothing else: what is read there is not followed blindly."""
    parameters = dict(word.split("=") for word in os.environ["UNIKVM_PARAMETERS"].split())

    def insert(**changed: int) -> None:
        words = [f"{name}={value}" for name, value in {**parameters, **changed}.items()]
        insmod(os.environ["UNIKVM_KO"], " ".join(words))

    rmmod("unikvm")
    for name in parameters:
        refused(22, lambda name=name: insert(**{name: (1 << 20) + 1}))  # type: ignore[misc]
    # Zeros, pointers of the kernel, and what is beside the vCPU.
    for offset in (1, *range(8, 1 << 14, 1000), 1 << 20):
        insert(svm_vmcb=offset, vmx_exit_reason=offset)
        with guest() as (vm, vcpus):
            attached = companion.attach(vm.fd)
            assert attached is not None
            assert to_halt(vcpus[0]) == OUTS
            seen = exits.read(attached)
            assert sum(seen.by_reason.values()) == seen.exits > OUTS, seen
            attached.close()
        rmmod("unikvm")
    insert()
    case_counts()


def victim(attached: memoryview) -> None:
    """A process with a VM that is attached and runs until the process is killed; it ends where a module is missing."""

    def work(vcpu: Vcpu) -> None:
        while True:
            run(vcpu.fd, kvm.KVM_RUN)

    with guest(FOREVER, cpus=2) as (vm, vcpus):
        fd = attach(vm.fd)
        attached[0] += 1
        for vcpu in vcpus:
            threading.Thread(target=work, args=(vcpu,), daemon=True).start()
        while True:
            time.sleep(random.uniform(0, 0.02))
            os.close(fd)
            fd = attach(vm.fd)
            attached[0] += 1


def kill_victims(attached: memoryview, ending: memoryview) -> None:
    while not ending[0]:
        before = attached[0]
        child = os.fork()
        if child == 0:
            try:
                victim(attached)
            finally:
                os._exit(1)
        while attached[0] == before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        time.sleep(random.uniform(0, 0.1))


def unload(attached: memoryview) -> list[int]:
    """Take modules away whenever nobody uses them; how often the kernel half went, and how often KVM."""
    went = [0, 0]
    started = time.monotonic()
    while (spent := time.monotonic() - started) < STRESS_SECONDS or not (all(attached) and went[0]):
        assert spent < STRESS_SECONDS + 60, (attached.tolist(), went)
        for index, (remove, insert) in enumerate(((remove_half, insert_half), (remove_kvm, insert_kvm))):
            before = sum(attached)
            try:
                remove()
            except BlockingIOError:  # it is used
                insert()  # but kvm.ko perhaps without the other one
                continue
            went[index] += 1
            insert()
            while sum(attached) == before and time.monotonic() < started + STRESS_SECONDS:
                time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
    return went


def case_stress() -> None:
    """Attach, close, kill -9 and unload both modules, all at once: nothing is left, and it counts as before."""
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    attached, ending = words[:3], words[3:4]
    killers = []
    for index in range(len(attached)):
        killers.append(os.fork())
        if killers[-1] == 0:
            kill_victims(attached[index : index + 1], ending)
            os._exit(0)
    try:
        went = unload(attached)
    finally:
        ending[0] = 1
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in killers]
    print(f"attached {sum(attached)} times, unloaded the kernel half {went[0]} times and KVM {went[1]} times")
    assert ends == [0] * len(killers)
    comes_true(lambda: uses() == 0)
    comes_true(lambda: vmalloc_used() == 0)
    case_counts()


if __name__ == "__main__":
    globals()[f"case_{sys.argv[1]}"]()
