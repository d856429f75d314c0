# SPDX-License-Identifier: GPL-2.0-only
"""The conversation with a back end: what each request says, and what its answer may be.

One object is one connection. Kicks and calls are eventfds that the back end shares with KVM; nothing of the steady
state passes here.
"""

from __future__ import annotations

import time

from unikvm.record import Record
from unikvm.vhost import messages as m
from unikvm.vhost.channel import BackendError, Channel, Requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.memory import GuestMemory
    from unikvm.sys.unixsocket import Socket

_PROTOCOL_FEATURES = (
    1 << m.PROTOCOL_F_MQ
    | 1 << m.PROTOCOL_F_REPLY_ACK
    | 1 << m.PROTOCOL_F_BACKEND_REQ
    | 1 << m.PROTOCOL_F_CONFIG
    | 1 << m.PROTOCOL_F_INFLIGHT_SHMFD
)
FIRST_SECONDS = 60.0  # until a back end that is just being started answers


class Ring(Record):
    """One virtqueue as it is handed over: entries, where to go on, and the user addresses of its areas."""

    index: int
    size: int
    base: int  # the next entry of the available ring to take
    descriptors: int
    available: int
    used: int


class Inflight(Record):
    """A back end's record of the requests under way, which outlives it. `fd` is the holder's to close."""

    fd: int
    size: int
    offset: int
    queues: int
    entries: int


class FrontEnd:
    """Speaks to one back end. Every method raises BackendError when the back end does not play along."""

    def __init__(self, sock: Socket, name: str) -> None:
        self._channel = Channel(sock, name)
        self._name = name
        self.fd = self._channel.fd
        self.features = 0  # virtio features on offer
        self.protocol_features = 0  # agreed on
        self.config = b""  # the part of the device's configuration space that was asked for
        self.requests: Requests | None = None  # the back end's own, where it may make any
        self.due = 0.0  # until when the configuration has to be there that `ask_config` asked for; 0: it is
        self._once_more = False  # it changed again since

    def negotiate(self, queues: int, *, listens: bool = False) -> None:
        """Claim the back end, learn what it can do, and see that it has `queues` queues. `listens`: it may say by
        itself that its configuration has changed."""
        channel = self._channel
        seconds, channel.seconds = channel.seconds, FIRST_SECONDS
        features = self._get(m.GET_FEATURES)
        channel.seconds = seconds
        if features >> m.F_PROTOCOL_FEATURES & 1:
            # Only afterwards may anything ask for an acknowledgement.
            agreed = self._get(m.GET_PROTOCOL_FEATURES) & _PROTOCOL_FEATURES
            if not listens or not agreed >> m.PROTOCOL_F_CONFIG & 1:
                agreed &= ~(1 << m.PROTOCOL_F_BACKEND_REQ)
            self._send(m.SET_PROTOCOL_FEATURES, m.U64.pack(agreed))
            self.protocol_features = agreed
        self._set(m.SET_OWNER)
        self.features = features & ~(1 << m.F_PROTOCOL_FEATURES)
        self._protocol = features & 1 << m.F_PROTOCOL_FEATURES
        if self._agreed(m.PROTOCOL_F_MQ):
            most = self._get(m.GET_QUEUE_NUM)
            if most < queues:
                raise BackendError(f"{self._name} has {most} queues, and {queues} are needed")
        if self._agreed(m.PROTOCOL_F_BACKEND_REQ):
            self.requests = Requests(self._name)
            self._set(m.SET_BACKEND_REQ_FD, b"", [self.requests.theirs.fileno()])
            self.requests.theirs.close()

    def set_features(self, features: int) -> None:
        """What the driver accepted."""
        self._set(m.SET_FEATURES, m.U64.pack(features | self._protocol))

    def set_memory(self, memory: GuestMemory) -> None:
        """Hand over guest RAM, which must be shared. User addresses are this process's."""
        regions = memory.regions
        if memory.fd < 0 or len(regions) > m.MAX_REGIONS:
            raise BackendError(f"guest memory cannot be shared with {self._name}")
        table = m.MEMORY_HEADER.pack(len(regions), 0)
        table += b"".join(m.MEMORY_REGION.pack(r.gpa, r.size, r.hva, r.offset) for r in regions)
        self._set(m.SET_MEM_TABLE, table, [memory.fd] * len(regions))

    def start_ring(self, ring: Ring, *, kick: int, call: int) -> None:
        """Let the back end serve a ring: `kick` and `call` are eventfds."""
        index = ring.index
        self._set(m.SET_VRING_NUM, m.VRING_STATE.pack(index, ring.size))
        self._set(m.SET_VRING_BASE, m.VRING_STATE.pack(index, ring.base))
        self._set(m.SET_VRING_ADDR, m.VRING_ADDR.pack(index, 0, ring.descriptors, ring.used, ring.available, 0))
        self.set_call(index, call)
        self._set(m.SET_VRING_KICK, m.U64.pack(index), [kick])
        if self._protocol:
            self._set(m.SET_VRING_ENABLE, m.VRING_STATE.pack(index, 1))

    def set_call(self, index: int, call: int) -> None:
        """The eventfd by which the back end interrupts the driver for a ring."""
        self._set(m.SET_VRING_CALL, m.U64.pack(index), [call])

    def stop_ring(self, index: int) -> int:
        """Stop a ring; when this returns the back end has finished with it. Gives where it would go on."""
        self._send(m.GET_VRING_BASE, m.VRING_STATE.pack(index, 0))
        answer, _ = self._channel.receive(m.GET_VRING_BASE, m.VRING_STATE.size)
        which, base = m.VRING_STATE.unpack(answer)
        if which != index:
            raise BackendError(f"{self._name} stopped ring {which} instead of {index}")
        position: int = base & 0xFFFF
        return position

    def get_config(self, size: int) -> bytes:
        """The first `size` bytes of the device's configuration space, which `config` holds from now on."""
        if not self._agreed(m.PROTOCOL_F_CONFIG) or size > m.MAX_CONFIG:
            raise BackendError(f"{self._name} does not give its configuration")
        header = m.CONFIG_HEADER.pack(0, size, 0)
        self._send(m.GET_CONFIG, header + bytes(size))
        answer, _ = self._channel.receive(m.GET_CONFIG, len(header) + size)
        self._take_config(answer, size)
        return self.config

    def ask_config(self) -> None:
        """Have the configuration that `get_config` gave read again, without waiting for it: `look` takes the answer,
        or whichever request comes before."""
        if self.due:
            self._once_more = True  # the answer may be older than the change
            return
        size = len(self.config)
        self._channel.send(m.GET_CONFIG, m.CONFIG_HEADER.pack(0, size, 0) + bytes(size))
        self.due = time.monotonic() + self._channel.seconds

    def _take_config(self, answer: bytes, size: int) -> None:
        if m.CONFIG_HEADER.unpack_from(answer)[:2] != (0, size):
            raise BackendError(f"{self._name} gives another part of its configuration than was asked for")
        self.config = answer[m.CONFIG_HEADER.size :]

    def look(self) -> None:
        """What the event loop does when there is something to read. BackendError where that is nobody's answer, the
        connection has ended, or the answer to `ask_config` is late."""
        if self.due:
            answer = self._channel.poll(m.GET_CONFIG, m.CONFIG_HEADER.size + len(self.config))
            if answer is not None:
                self._asked_for(answer)
            elif time.monotonic() >= self.due:
                raise BackendError(f"{self._name} does not give its configuration in time")
        else:
            why = self._channel.broken()
            if why:
                raise BackendError(f"{self._name}: {why}")

    def _asked_for(self, answer: bytes) -> None:
        self.due = 0.0
        self._take_config(answer, len(self.config))
        if self._once_more:
            self._once_more = False
            self.ask_config()

    def get_inflight(self, queues: int, entries: int) -> Inflight | None:
        """A new record of requests under way; None where the back end keeps none."""
        if not self._agreed(m.PROTOCOL_F_INFLIGHT_SHMFD):
            return None
        self._send(m.GET_INFLIGHT_FD, m.INFLIGHT.pack(0, 0, queues, entries))
        answer, (fd,) = self._channel.receive(m.GET_INFLIGHT_FD, m.INFLIGHT.size, fds=1)
        size, offset, its_queues, its_entries = m.INFLIGHT.unpack(answer)
        # Nobody here maps it: it is kept for the back end's successor.
        return Inflight(fd, size, offset, its_queues, its_entries)

    def set_inflight(self, record: Inflight) -> None:
        """Hand over the record that `get_inflight` gave, to this back end or to its successor."""
        payload = m.INFLIGHT.pack(record.size, record.offset, record.queues, record.entries)
        self._set(m.SET_INFLIGHT_FD, payload, [record.fd])

    def close(self) -> None:
        if self.requests is not None:
            self.requests.close()
        self._channel.close()

    def _agreed(self, bit: int) -> bool:
        return bool(self.protocol_features >> bit & 1)

    def _send(self, request: int, payload: bytes = b"", fds: list[int] | None = None, *, flags: int = 0) -> None:
        """Send a request; an answer that is under way comes before its own."""
        while self.due:
            answer, _ = self._channel.receive(m.GET_CONFIG, m.CONFIG_HEADER.size + len(self.config))
            self._asked_for(answer)
        self._channel.send(request, payload, fds or [], flags=flags)

    def _get(self, request: int) -> int:
        self._send(request)
        answer, _ = self._channel.receive(request, m.U64.size)
        value: int = m.U64.unpack(answer)[0]
        return value

    def _set(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        """A request without an answer of its own: acknowledged, where the back end can."""
        acknowledged = self._agreed(m.PROTOCOL_F_REPLY_ACK)
        self._send(request, payload, fds, flags=m.NEED_REPLY if acknowledged else 0)
        if acknowledged:
            answer, _ = self._channel.receive(request, m.U64.size)
            if answer != bytes(m.U64.size):
                raise BackendError(f"{self._name} refuses {m.NAMES[request]}")
