# SPDX-License-Identifier: GPL-2.0-only
"""The 8254 timer and the speaker's port, until KVM has them: it is asked for them when a guest first touches one.

KVM waits for a grace period of SRCU when it takes its timer down, for longer than a payload runs that has no use for
it. What the first access means is put into KVM's state; each later one is KVM's own, and makes no exit. Map it twice:
`timer` at 0x40 and `speaker` at 0x61. (Intel 8254 data sheet; Linux's arch/x86/kvm/i8254.c.)
"""

from __future__ import annotations

from unikvm.lean import Lock
from unikvm.uapi.kvm import KVM_PIT_FLAGS_SPEAKER_DATA_ON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.uapi.kvm_state import kvm_pit_state2

    class KernelPit(Protocol):
        """KVM's timer, with the speaker's port."""

        def create_pit(self) -> None: ...

        def pit(self) -> kvm_pit_state2: ...

        def set_pit(self, state: kvm_pit_state2) -> None: ...


_CONTROL = 3  # the port behind those of the channels, which are 0, 1 and 2
_SPEAKER_CHANNEL = 2
_GATE, _DATA_ON = 0x01, 0x02  # of the speaker's port


class Pit:
    """`kernel` has no timer yet."""

    def __init__(self, kernel: KernelPit) -> None:
        self._kernel = kernel
        self._created = False
        self._lock = Lock()  # two vCPUs may come with their first accesses
        self.timer = _Ports(self._create, lambda port, value: self._change(_timer_written, port, value))
        self.speaker = _Ports(self._create, lambda port, value: self._change(_speaker_written, port, value))

    def _create(self) -> None:
        with self._lock:
            if not self._created:
                self._kernel.create_pit()
                self._created = True

    def _change(self, change: Callable[[kvm_pit_state2, int, int], None], port: int, value: int) -> None:
        self._create()
        with self._lock:
            state = self._kernel.pit()
            change(state, port, value)
            self._kernel.set_pit(state)


def _timer_written(state: kvm_pit_state2, port: int, value: int) -> None:
    if port < _CONTROL:
        state.channels[port].count = value  # the low byte, where nothing else was said
        return
    number, access, mode = value >> 6, value >> 4 & 3, value >> 1 & 7
    if number < _CONTROL and access:  # not a latch: there is nothing yet to read later
        channel = state.channels[number]
        channel.rw_mode = channel.read_state = channel.write_state = access
        channel.mode = mode if mode < 6 else mode - 4
        channel.bcd = value & 1


def _speaker_written(state: kvm_pit_state2, _port: int, value: int) -> None:
    state.channels[_SPEAKER_CHANNEL].gate = value & _GATE
    if value & _DATA_ON:
        state.flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON
    else:
        state.flags &= ~KVM_PIT_FLAGS_SPEAKER_DATA_ON


class _Ports:
    """Byte-wide ports of a timer that has just been made: it has counted nothing, so each reads 0."""

    def __init__(self, create: Callable[[], None], change: Callable[[int, int], None]) -> None:
        self._create = create
        self._change = change

    def read(self, offset: int, size: int) -> int:
        self._create()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._change(offset, value & 0xFF)
