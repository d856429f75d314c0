# SPDX-License-Identifier: GPL-2.0-only
"""Split virtqueues (virtio 1.2 §2.7), device side. Knows nothing of transports and of devices.

The driver is hostile: every address passes `GuestMemory.view`, each descriptor is read once, walks and byte
counts are bounded. What is malformed raises GuestFault, which the device turns into DEVICE_NEEDS_RESET.

A queue belongs to the `io` thread once it is started; `start` and `stop` run under the device's lock.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import GuestFault
from unikvm.lean import Lock
from unikvm.uapi.virtio import (
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unikvm.memory import GuestMemory
    from unikvm.virtio.state import QueueState

MAX_CHAIN = 1024  # descriptors in one chain; also IOV_MAX, so that a chain fits one preadv
MAX_CHAIN_BYTES = 0xFFFF_FFFF  # §2.7.5: a chain is shorter than 4 GiB; the used length has 32 bits

_DESCRIPTOR = Struct("<QIHH")  # struct vring_desc: addr, len, flags, next
_unpack_descriptor = _DESCRIPTOR.unpack_from
_NOTHING = memoryview(b"")


def _nobody() -> None:
    """Stands for an interrupt or a doorbell that is not connected yet."""


class Chain:
    """One request: what the driver lets the device read, then what it lets the device write.

    `readable` and `writable` are views of guest RAM that shrink as bytes are taken from and put into them.
    """

    __slots__ = ("head", "readable", "readable_len", "writable", "writable_len", "written")

    def __init__(
        self,
        head: int,
        readable: list[memoryview],
        readable_len: int,
        writable: list[memoryview],
        writable_len: int,
    ) -> None:
        self.head = head
        self.readable = readable
        self.readable_len = readable_len
        self.writable = writable
        self.writable_len = writable_len
        self.written = 0

    def read(self, count: int) -> bytes:
        """Take up to `count` bytes off the front of the readable part, as a copy."""
        readable = self.readable
        if readable and len(readable[0]) == count:
            self.readable_len -= count
            return readable.pop(0).tobytes()
        parts = []
        while count and readable:
            first = readable[0]
            size = len(first)
            if size <= count:
                parts.append(first.tobytes())
                del readable[0]
            else:
                size = count
                parts.append(first[:size].tobytes())
                readable[0] = first[size:]
            count -= size
            self.readable_len -= size
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Take `count` bytes off the readable part without looking: they went elsewhere (writev)."""
        self.readable_len -= count
        if self.readable_len:
            _drop_front(self.readable, count)
        else:
            self.readable.clear()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put `data` at the front of the writable part; the number of bytes that fitted."""
        done = 0
        size = len(data)
        for view in self.writable:
            if done >= size:
                break
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        self.fill(done)
        return done

    def fill(self, count: int) -> None:
        """Account for `count` bytes that were put into the front of `writable` directly (preadv)."""
        self.written += count
        self.writable_len -= count
        if self.writable_len:
            _drop_front(self.writable, count)
        else:
            self.writable.clear()

    def take_last(self) -> memoryview:
        """Split off the last writable byte, where requests have their status. Its byte counts as written.

        Raises GuestFault when nothing is writable.
        """
        if not self.writable:
            raise GuestFault("a request without a byte for its status")
        last = self.writable[-1]
        if len(last) == 1:
            self.writable.pop()
        else:
            self.writable[-1] = last[:-1]
            last = last[-1:]
        self.writable_len -= 1
        self.written += 1
        return last


def _drop_front(views: list[memoryview], count: int) -> None:
    index = 0
    while count:
        size = len(views[index])
        if size > count:
            views[index] = views[index][count:]
            break
        count -= size
        index += 1
    del views[:index]


class Queue:
    """A split virtqueue. Its set-up fields are the transport's until `start`; the rest is the io thread's."""

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.interrupt: Callable[[], None] = _nobody  # used buffers notification (§2.9)
        self.kick: Callable[[], None] = _nobody  # ring the own doorbell: there is more to do
        self._fence = Lock()
        self._avail_ring = self._used_ring = self._elements = _NOTHING
        self._descriptors = _NOTHING
        self.reset()

    def reset(self) -> None:
        """As after power-on: not ready, no addresses, the largest size."""
        self.stop()
        self.size = self.max_size
        self.ready = False
        self.areas = [0, 0, 0]  # guest-physical addresses: descriptors, available ring, used ring
        self._last_avail = 0  # next entry of the available ring to take
        self._seen_avail = 0  # the available index as last read
        self._next_used = 0  # where the next used element goes
        self._published = 0  # the used index as the driver sees it

    def start(self, memory: GuestMemory, features: int) -> None:
        """Map the rings.

        Raises GuestFault when they are not wholly in RAM, misaligned or of a bad size (§2.7).
        """
        size = self.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise GuestFault(f"queue {self.index}: a size of {size}")
        descriptors, available, used = self.areas
        if descriptors & 15 or available & 1 or used & 3:
            raise GuestFault(f"queue {self.index}: misaligned rings")
        self._view = memory.view
        self._descriptors = memory.view(descriptors, 16 * size)
        # Each 16-bit index is loaded and stored whole through these casts; pack_into would clear it first.
        self._avail_ring = memory.view(available, 6 + 2 * size).cast("H")  # flags, idx, ring[size], used_event
        ring = memory.view(used, 6 + 8 * size)
        self._used_ring = ring.cast("H")  # flags, idx, ring[size] of 4 halves each, avail_event
        self._elements = ring[4 : 4 + 8 * size].cast("I")  # id, len of each element
        self._event_idx = bool(features >> VIRTIO_RING_F_EVENT_IDX & 1)
        self._indirect = bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1)
        self._mask = size - 1
        self.active = True

    def stop(self) -> None:
        """Let go of guest memory. Nothing is taken or published until the next `start`."""
        self.active = False
        self._descriptors = self._avail_ring = self._used_ring = self._elements = _NOTHING

    def available(self) -> Iterator[Chain]:
        """The chains that the driver made available, at most a ring of them.

        Ends with notifications enabled, so that the driver rings for the next one. When the driver adds
        faster than the device serves, the doorbell is rung from here instead, and others have their turn in
        between.
        """
        pop = self.pop
        for _ in range(self.size):
            chain = pop()
            if chain is None:
                if not self.rearm():
                    return
                chain = pop()
                if chain is None:
                    return
            yield chain
        self.kick()

    def pop(self) -> Chain | None:
        """Take the next available chain, or None. Raises GuestFault when it is malformed."""
        last = self._last_avail
        if last == self._seen_avail:
            seen = self._avail_ring[1]
            if seen == last:
                return None
            if (seen - last) & 0xFFFF > self.size:
                raise GuestFault(f"queue {self.index}: the available index jumped from {last} to {seen}")
            self._seen_avail = seen
        head = self._avail_ring[2 + (last & self._mask)]
        self._last_avail = (last + 1) & 0xFFFF
        return self._walk(head)

    def rearm(self, ahead: int = 1) -> bool:
        """Ask to be notified of the next available buffer (§2.7.10), or where the driver knows such wishes, of the
        `ahead`th. True when that many came in the meantime."""
        if self._event_idx:
            self._used_ring[2 + 4 * self.size] = (self._last_avail + ahead - 1) & 0xFFFF
            # A full fence: the store of the event index must be visible before the available index is read
            # again, or driver and device both believe that the other one has seen their store. On x86 taking
            # a lock is one.
            self._fence.acquire()
            self._fence.release()
            return (self._avail_ring[1] - self._last_avail) & 0xFFFF >= ahead
        return self._avail_ring[1] != self._last_avail

    def used_index(self) -> int:
        """The used index as it stands in guest memory: that of a back end, where one serves the queue."""
        index: int = self._used_ring[1]
        return index

    def recent(self) -> tuple[list[int], list[int]]:
        """(available, used): the heads of the last `size` entries of each ring, oldest first.

        For a queue that somebody else served. None of them is checked.
        """
        size, mask = self.size, self._mask
        available, used = self._avail_ring[1], self._used_ring[1]
        heads = [self._avail_ring[2 + (at & mask)] for at in range(available - size, available)]
        return heads, [self._elements[(at & mask) << 1] for at in range(used - size, used)]

    def distance(self) -> int:
        """How many chains were made available and not given back, by the indices in guest memory."""
        distance: int = (self._avail_ring[1] - self._used_ring[1]) & 0xFFFF
        return distance

    def offer_again(self, heads: list[int]) -> None:
        """Put `heads` into the last entries of the available ring, the driver's: for one who takes the place of another
        and begins at the used index. A driver never looks at entries that it has published."""
        for at, head in enumerate(heads, self._avail_ring[1] - len(heads)):
            self._avail_ring[2 + (at & self._mask)] = head

    @property
    def position(self) -> int:
        """The next entry of the available ring to take."""
        return self._last_avail

    def seek(self, position: int | None = None) -> None:
        """Take the place of somebody else who served the queue up to `position` of the available ring; by default all
        of it: what was not given back then counts as taken, and `walk` finds it by its head."""
        self._last_avail = self._seen_avail = self._avail_ring[1] if position is None else position
        self._next_used = self._published = self._used_ring[1]

    def walk(self, head: int) -> Chain:
        """The chain that starts at `head`, whoever took it. GuestFault when it is malformed."""
        return self._walk(head)

    def _walk(self, head: int) -> Chain:
        """Collect the chain that starts at `head` (§2.7.5). Each descriptor is read once, into a tuple."""
        table = self._descriptors
        entries = self.size
        index = head
        view = self._view
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        readable_len = writable_len = 0
        nested = False
        for _ in range(MAX_CHAIN):
            if index >= entries:
                raise GuestFault(f"queue {self.index}: descriptor {index} of {entries}")
            address, length, flags, index = _unpack_descriptor(table, index << 4)
            if flags & VRING_DESC_F_INDIRECT:
                if nested or not self._indirect or flags & VRING_DESC_F_NEXT:
                    raise GuestFault(f"queue {self.index}: an indirect descriptor where none may be")
                if not length or length & 15 or length > MAX_CHAIN << 4:
                    raise GuestFault(f"queue {self.index}: an indirect table of {length} bytes")
                table = view(address, length)
                entries = length >> 4
                index = 0
                nested = True
                continue
            if length:
                if flags & VRING_DESC_F_WRITE:
                    writable.append(view(address, length))
                    writable_len += length
                elif writable:
                    raise GuestFault(f"queue {self.index}: a readable descriptor after a writable one")
                else:
                    readable.append(view(address, length))
                    readable_len += length
            if not flags & VRING_DESC_F_NEXT:
                if readable_len + writable_len > MAX_CHAIN_BYTES:
                    raise GuestFault(f"queue {self.index}: a chain of 4 GiB or more")
                return Chain(head, readable, readable_len, writable, writable_len)
        raise GuestFault(f"queue {self.index}: a chain of more than {MAX_CHAIN} descriptors")

    def add_used(self, chain: Chain) -> None:
        """Give `chain` back. The driver sees it with the next `flush`."""
        next_used = self._next_used
        position = (next_used & self._mask) << 1
        elements = self._elements
        elements[position] = chain.head
        elements[position + 1] = chain.written
        self._next_used = (next_used + 1) & 0xFFFF

    def flush(self) -> None:
        """Publish what `add_used` collected, by one store of the index; interrupt the driver if it wants."""
        old = self._published
        new = self._next_used
        if new == old:
            return
        self._used_ring[1] = new
        self._published = new
        # A full fence, as in `rearm`: the index must be visible before the driver's wish is read (§2.7.7).
        self._fence.acquire()
        self._fence.release()
        if self._event_idx:
            event = self._avail_ring[2 + self.size]
            if (new - event - 1) & 0xFFFF >= (new - old) & 0xFFFF:
                return
        elif self._avail_ring[0] & VRING_AVAIL_F_NO_INTERRUPT:
            return
        self.interrupt()

    def save(self, held: int = 0) -> QueueState:
        """The state for a snapshot. `held`: how many of the last taken chains were not given back yet."""
        from unikvm.virtio.state import QueueState

        return QueueState(
            size=self.size,
            ready=self.ready,
            areas=(self.areas[0], self.areas[1], self.areas[2]),
            last_avail=(self._last_avail - held) & 0xFFFF,
            next_used=self._next_used,
        )

    def restore(self, state: QueueState) -> None:
        """Take over `state`; the transport's or device's restore starts the queue."""
        self.reset()
        self.size = state.size
        self.ready = state.ready
        self.areas = list(state.areas)
        self._last_avail = self._seen_avail = state.last_avail
        self._next_used = self._published = state.next_used
