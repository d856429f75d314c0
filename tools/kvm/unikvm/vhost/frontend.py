# SPDX-License-Identifier: GPL-2.0-only
"""The conversation with a back end: what each request says, and what its answer may be.

One object is one connection. Kicks and calls are eventfds that the back end shares with KVM; nothing of the steady
state passes here.
"""

from __future__ import annotations

from unikvm.record import Record
from unikvm.vhost import messages as m
from unikvm.vhost.channel import BackendError, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.memory import GuestMemory
    from unikvm.sys.unixsocket import Socket

_PROTOCOL_FEATURES = (
    1 << m.PROTOCOL_F_MQ | 1 << m.PROTOCOL_F_REPLY_ACK | 1 << m.PROTOCOL_F_CONFIG | 1 << m.PROTOCOL_F_INFLIGHT_SHMFD
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

    def negotiate(self, queues: int) -> None:
        """Claim the back end, learn what it can do, and see that it has `queues` queues."""
        channel = self._channel
        seconds, channel.seconds = channel.seconds, FIRST_SECONDS
        features = self._get(m.GET_FEATURES)
        channel.seconds = seconds
        if features >> m.F_PROTOCOL_FEATURES & 1:
            # Only afterwards may anything ask for an acknowledgement.
            agreed = self._get(m.GET_PROTOCOL_FEATURES) & _PROTOCOL_FEATURES
            channel.send(m.SET_PROTOCOL_FEATURES, m.U64.pack(agreed))
            self.protocol_features = agreed
        self._set(m.SET_OWNER)
        self.features = features & ~(1 << m.F_PROTOCOL_FEATURES)
        self._protocol = features & 1 << m.F_PROTOCOL_FEATURES
        if self._agreed(m.PROTOCOL_F_MQ):
            most = self._get(m.GET_QUEUE_NUM)
            if most < queues:
                raise BackendError(f"{self._name} has {most} queues, and {queues} are needed")

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
        self._channel.send(m.GET_VRING_BASE, m.VRING_STATE.pack(index, 0))
        answer, _ = self._channel.receive(m.GET_VRING_BASE, m.VRING_STATE.size)
        which, base = m.VRING_STATE.unpack(answer)
        if which != index:
            raise BackendError(f"{self._name} stopped ring {which} instead of {index}")
        position: int = base & 0xFFFF
        return position

    def get_config(self, size: int) -> bytes:
        """The first `size` bytes of the device's configuration space."""
        if not self._agreed(m.PROTOCOL_F_CONFIG) or size > m.MAX_CONFIG:
            raise BackendError(f"{self._name} does not give its configuration")
        header = m.CONFIG_HEADER.pack(0, size, 0)
        self._channel.send(m.GET_CONFIG, header + bytes(size))
        answer, _ = self._channel.receive(m.GET_CONFIG, len(header) + size)
        if m.CONFIG_HEADER.unpack_from(answer)[:2] != (0, size):
            raise BackendError(f"{self._name} gives another part of its configuration than was asked for")
        return answer[len(header) :]

    def get_inflight(self, queues: int, entries: int) -> Inflight | None:
        """A new record of requests under way; None where the back end keeps none."""
        if not self._agreed(m.PROTOCOL_F_INFLIGHT_SHMFD):
            return None
        self._channel.send(m.GET_INFLIGHT_FD, m.INFLIGHT.pack(0, 0, queues, entries))
        answer, (fd,) = self._channel.receive(m.GET_INFLIGHT_FD, m.INFLIGHT.size, fds=1)
        size, offset, its_queues, its_entries = m.INFLIGHT.unpack(answer)
        # Nobody here maps it: it is kept for the back end's successor.
        return Inflight(fd, size, offset, its_queues, its_entries)

    def set_inflight(self, record: Inflight) -> None:
        """Hand over the record that `get_inflight` gave, to this back end or to its successor."""
        payload = m.INFLIGHT.pack(record.size, record.offset, record.queues, record.entries)
        self._set(m.SET_INFLIGHT_FD, payload, [record.fd])

    @property
    def broken(self) -> str:
        """Why the connection is of no use any more, or an empty string."""
        return self._channel.broken()

    def close(self) -> None:
        self._channel.close()

    def _agreed(self, bit: int) -> bool:
        return bool(self.protocol_features >> bit & 1)

    def _get(self, request: int) -> int:
        self._channel.send(request)
        answer, _ = self._channel.receive(request, m.U64.size)
        value: int = m.U64.unpack(answer)[0]
        return value

    def _set(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        """A request without an answer of its own: acknowledged, where the back end can."""
        acknowledged = self._agreed(m.PROTOCOL_F_REPLY_ACK)
        self._channel.send(request, payload, fds or [], flags=m.NEED_REPLY if acknowledged else 0)
        if acknowledged:
            answer, _ = self._channel.receive(request, m.U64.size)
            if answer != bytes(m.U64.size):
                raise BackendError(f"{self._name} refuses {m.NAMES[request]}")
