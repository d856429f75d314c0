# SPDX-License-Identifier: GPL-2.0-only
"""The thread of one vCPU: enters the guest and serves its exits.

Every exit into Python contends for the interpreter, so the loop does nothing but find the device. Only this thread
issues ioctls on its vCPU; others ask through `call`.
"""

from __future__ import annotations

import os
from struct import Struct

from unikvm.bus import Bus
from unikvm.errors import KvmError, UnikvmError
from unikvm.lean import SIG_DFL, SIG_IGN, SIGUSR1, deque, getsignal, pthread_kill, signal
from unikvm.machine.events import Event, KvmFailure, TripleFault, VmmFailure
from unikvm.sys.kvm import Vcpu, interrupted, run
from unikvm.sys.thread import Thread
from unikvm.uapi import kvm as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KICK_SIGNAL = SIGUSR1

_IO = Struct("<BBHIQ")  # direction, size, port, count, data_offset of kvm_run.io
_IO_AT = uapi.KVM_RUN_IO_OFFSET
_MMIO_AT = uapi.KVM_RUN_MMIO_OFFSET
_MMIO = Struct("<Q8sIB")  # phys_addr, data, len, is_write of kvm_run.mmio
_MMIO_DATA = _MMIO_AT + 8
_REASON_AT = uapi.KVM_RUN_EXIT_REASON_OFFSET
_EXIT_IO = uapi.KVM_EXIT_IO
_EXIT_MMIO = uapi.KVM_EXIT_MMIO
_IMMEDIATE_EXIT_AT = uapi.KVM_RUN_IMMEDIATE_EXIT_OFFSET


def install_kick_handler() -> None:
    """Let the kick signal interrupt KVM_RUN. Python allows that on the process's main thread only."""
    if getsignal(KICK_SIGNAL) in (SIG_DFL, SIG_IGN, None):
        try:
            signal(KICK_SIGNAL, lambda _number, _frame: None)
        except ValueError:
            raise UnikvmError("the first Machine of a process must be made on its main thread") from None


class _Nothing:
    """Where no device is: all ones, and what is written is lost."""

    def read(self, _offset: int, size: int) -> int:
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None: ...


_UNCLAIMED = (0, 0, _Nothing())


class VcpuThread:
    """Runs `vcpu` on a thread of its own until `stop`; the events of its end go to `post`."""

    def __init__(
        self,
        vcpu: Vcpu,
        pio: Bus,
        mmio: Bus,
        post: Callable[[Event], None],
        *,
        pin: int | None = None,
    ) -> None:
        """`pin`: the CPU of the host to run on."""
        self.vcpu = vcpu
        self.pin = pin
        self._pio = pio
        self._mmio = mmio
        self._post = post
        self._stopping = False
        self._calls: deque[Callable[[], None]] = deque()
        self._thread = Thread(self._main, f"vcpu/{vcpu.index}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to leave the guest and end."""
        self._stopping = True
        self.kick()

    def join(self) -> None:
        self._thread.join()

    def kick(self) -> None:
        """Make KVM_RUN return soon. Setting immediate_exit first closes the race with an entry under way."""
        self.vcpu.run_page[_IMMEDIATE_EXIT_AT] = 1
        if self._thread.alive and self._thread.ident is not None:
            pthread_kill(self._thread.ident, KICK_SIGNAL)

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` on the vCPU's thread, outside the guest; returns at once."""
        self._calls.append(function)
        self.kick()

    def settle(self) -> None:
        """Finish the exit that the vCPU, whose thread has ended, was left with: KVM does that when it is entered."""
        self.vcpu.run_page[_IMMEDIATE_EXIT_AT] = 1
        try:
            run(self.vcpu.fd, uapi.KVM_RUN)
        except OSError as error:
            interrupted(error)
        self.vcpu.run_page[_IMMEDIATE_EXIT_AT] = 0

    def _main(self) -> None:
        try:
            if self.pin is not None:
                os.sched_setaffinity(0, (self.pin,))
            self._loop()
        except KvmError as error:
            self._post(KvmFailure(f"vCPU {self.vcpu.index}: {error}"))
        except Exception as error:
            self._post(VmmFailure(error))

    def _loop(self) -> None:
        fd = self.vcpu.fd
        page = self.vcpu.run_page
        reason = page[_REASON_AT : _REASON_AT + 4].cast("I")
        head = page[_IO_AT : _IO_AT + 8].cast("Q")  # all of kvm_run.io but where the data is
        pio, kvm_run, exit_io = self._pio, uapi.KVM_RUN, _EXIT_IO
        # KVM aligns the data of an access to its size, so one of these reads or writes it as one element.
        elements = {1: page, 2: page.cast("H"), 4: page.cast("I")}
        while not self._stopping:
            try:
                run(fd, kvm_run)
            except OSError as error:
                interrupted(error)
                page[_IMMEDIATE_EXIT_AT] = 0
                while self._calls:
                    self._calls.popleft()()
                continue
            why = reason[0]
            if why == exit_io:
                try:
                    act, offset, size, index, is_out = pio.resolved[head[0]]
                except KeyError:
                    self._serve_io(page, elements, head[0])
                    continue
                if is_out:
                    act(offset, size, elements[size][index])
                else:
                    elements[size][index] = act(offset, size)
            elif why == _EXIT_MMIO:
                self._serve_mmio(page)
            elif not self._serve_rare(why):
                return

    def _serve_io(self, page: memoryview, elements: dict[int, memoryview], head: int) -> None:
        """Find the device, serve the exit, and remember what it takes, for the next one that begins with `head`."""
        resolved = self._pio.resolved
        direction, size, port, count, at = _IO.unpack_from(page, _IO_AT)
        entry = self._pio.find(port)
        start, _, device = entry or _UNCLAIMED
        offset, view, first = port - start, elements[size], at // size
        for index in range(first, first + count):  # more than one: a string instruction
            if direction:  # KVM_EXIT_IO_OUT
                device.write(offset, size, view[index])
            else:
                view[index] = device.read(offset, size)
        if entry and count == 1:  # so a guest cannot make the table large
            # KVM has the data of each vCPU at the same place of its page.
            resolved[head] = (device.write if direction else device.read, offset, size, first, direction)

    def _serve_mmio(self, page: memoryview) -> None:
        address, data, size, is_write = _MMIO.unpack_from(page, _MMIO_AT)
        if is_write:
            self._mmio.write(address, size, int.from_bytes(data[:size], "little"))
        else:
            page[_MMIO_DATA : _MMIO_DATA + size] = self._mmio.read(address, size).to_bytes(size, "little")

    def _serve_rare(self, why: int) -> bool:
        """Serve an exit that is neither PIO nor MMIO. False when the vCPU cannot go on."""
        if why in (uapi.KVM_EXIT_INTR, uapi.KVM_EXIT_IRQ_WINDOW_OPEN, uapi.KVM_EXIT_HLT):
            return True
        self._post(self._describe_end(why))
        return False

    def _describe_end(self, why: int) -> Event:
        index = self.vcpu.index
        rip: int = self.vcpu.get("KVM_GET_REGS", uapi.kvm_regs).rip
        if why == uapi.KVM_EXIT_SHUTDOWN:
            return TripleFault(index, rip)
        from unikvm.uapi.kvm_state import kvm_run

        state = kvm_run.from_buffer(self.vcpu.run_map)
        where = f"vCPU {index} at rip {rip:#x}"
        if why == uapi.KVM_EXIT_FAIL_ENTRY:
            code = state.fail_entry.hardware_entry_failure_reason
            return KvmFailure(f"{where}: the CPU refused to enter the guest, hardware reason {code:#x}")
        if why == uapi.KVM_EXIT_INTERNAL_ERROR:
            internal = state.internal
            name = _INTERNAL_ERRORS.get(internal.suberror, f"suberror {internal.suberror}")
            data = " ".join(f"{internal.data[i]:#x}" for i in range(min(internal.ndata, len(internal.data))))
            return KvmFailure(f"{where}: KVM internal error: {name}" + (f" [{data}]" if data else ""))
        return KvmFailure(f"{where}: unexpected KVM exit {why}")


_INTERNAL_ERRORS = {
    uapi.KVM_INTERNAL_ERROR_EMULATION: "an instruction that KVM cannot emulate",
    uapi.KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    uapi.KVM_INTERNAL_ERROR_DELIVERY_EV: "a fault while delivering an event",
    uapi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an unexpected hardware exit reason",
}
