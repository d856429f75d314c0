# SPDX-License-Identifier: GPL-2.0-only
"""The guest's side of virtio, for tests.

A split-ring driver over guest memory, and stand-ins for interrupts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from struct import pack, unpack_from

from unikvm.memory import GuestMemory
from unikvm.sys.eventloop import EventLoop
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Queue

RAM = 4 << 20
HIGH_GPA = 1 << 32
HIGH_SIZE = 1 << 20
AWAKE = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
ALIVE = AWAKE | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK


def make_memory(*, shared: bool = False) -> GuestMemory:
    """4 MiB from 0 and 1 MiB from 4 GiB."""
    return GuestMemory([(0, RAM), (HIGH_GPA, HIGH_SIZE)], shared=shared)


class Allocator:
    """Hands out guest memory, never to be given back."""

    def __init__(self, start: int = 0x10000, end: int = RAM) -> None:
        self.next = start
        self._end = end

    def take(self, size: int, align: int = 16) -> int:
        address = (self.next + align - 1) & -align
        assert address + size <= self._end, "the test's guest memory is too small"
        self.next = address + size
        return address


class Ring:
    """A driver's virtqueue. Descriptors are used in turn, so at most `size` may be in flight."""

    def __init__(self, memory: GuestMemory, allocator: Allocator, size: int) -> None:
        self.memory = memory
        self.size = size
        self.desc = allocator.take(16 * size)
        self.avail = allocator.take(6 + 2 * size)
        self.used = allocator.take(6 + 8 * size)
        self._allocator = allocator
        self._next = 0
        self.avail_idx = 0
        self.used_idx = 0

    def set_up(self, queue: Queue) -> None:
        """What a transport does for the driver's register writes."""
        queue.size = self.size
        queue.areas = [self.desc, self.avail, self.used]
        queue.ready = True

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, pack("<QIHH", address, length, flags, following))

    def add(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]], *, indirect: bool = False) -> int:
        """Make a chain of (address, length) buffers available; its head."""
        parts = [(*part, 0) for part in readable] + [(*part, VRING_DESC_F_WRITE) for part in writable]
        if indirect:
            table = self._allocator.take(16 * len(parts))
            for index, (address, length, flags) in enumerate(parts):
                more = VRING_DESC_F_NEXT if index + 1 < len(parts) else 0
                self.memory.write(table + 16 * index, pack("<QIHH", address, length, flags | more, index + 1))
            parts = [(table, 16 * len(parts), VRING_DESC_F_INDIRECT)]
        head = self._next
        for index, (address, length, flags) in enumerate(parts):
            slot = (head + index) % self.size
            more = VRING_DESC_F_NEXT if index + 1 < len(parts) else 0
            self.descriptor(slot, address, length, flags | more, (slot + 1) % self.size)
        self._next = (head + len(parts)) % self.size
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put `head` into the available ring."""
        self.memory.write(self.avail + 4 + 2 * (self.avail_idx % self.size), pack("<H", head))
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, index: int) -> None:
        self.avail_idx = index & 0xFFFF
        self.memory.write(self.avail + 2, pack("<H", self.avail_idx))

    def set_used_event(self, index: int) -> None:
        self.memory.write(self.avail + 4 + 2 * self.size, pack("<H", index & 0xFFFF))

    def set_no_interrupt(self, flag: int) -> None:
        self.memory.write(self.avail, pack("<H", flag))

    def avail_event(self) -> int:
        event: int = unpack_from("<H", self.memory.view(self.used + 4 + 8 * self.size, 2))[0]
        return event

    def take_used(self) -> list[tuple[int, int]]:
        """The new (head, length) elements."""
        (end,) = unpack_from("<H", self.memory.view(self.used + 2, 2))
        elements = []
        while self.used_idx != end:
            slot = self.used + 4 + 8 * (self.used_idx % self.size)
            elements.append(unpack_from("<II", self.memory.view(slot, 8)))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        return elements


class FakeTransport:
    """Counts interrupts."""

    def __init__(self) -> None:
        self.queue_interrupts: dict[int, int] = {}
        self.config_interrupts = 0
        self.eventfds: dict[int, int] = {}

    def queue_interrupt(self, index: int) -> Callable[[], None]:
        def count() -> None:
            self.queue_interrupts[index] = self.queue_interrupts.get(index, 0) + 1

        return count

    def queue_eventfd(self, index: int) -> int:
        return self.eventfds.get(index, -1)

    def config_interrupt(self) -> None:
        self.config_interrupts += 1


class Bench:
    """A device on a fake transport, with a driver's rings in guest memory."""

    def __init__(self, device: VirtioDevice) -> None:
        self.patience = 10.0  # seconds, with a device that has a thread of its own
        self.memory = make_memory(shared=device.shares_memory)
        self.loop = EventLoop()
        self.transport = FakeTransport()
        self.device = device
        self.allocator = Allocator()
        device.connect(self.memory, self.loop, self.transport)
        self.rings: list[Ring] = []

    def start(self, features: int | None = None, size: int | None = None) -> None:
        """The driver's initialisation (§3.1.1), with all offered features unless told."""
        device = self.device
        accepted = device.offered if features is None else features
        device.write_status(AWAKE)
        device.accept_features(0, accepted & 0xFFFF_FFFF)
        device.accept_features(1, accepted >> 32)
        device.write_status(AWAKE | VIRTIO_CONFIG_S_FEATURES_OK)
        self.rings = []
        for queue in device.queues:
            ring = Ring(self.memory, self.allocator, size or queue.max_size)
            ring.set_up(queue)
            self.rings.append(ring)
        device.write_status(ALIVE)
        self.settle()

    def settle(self, rounds: int = 3) -> None:
        """Run the io thread's part until it has nothing to do (or for `rounds`)."""
        own = self.device.loop if self.device.loop is not self.loop else None
        for _ in range(rounds):
            if own is not None:  # the device has a thread
                passed: SimpleQueue[None] = SimpleQueue()
                own.call_soon(partial(passed.put, None))
                try:
                    passed.get(timeout=self.patience)
                except Empty:
                    own = None  # it is in a request that takes its time, or has ended
            self.loop.stop()
            self.loop.run()

    def kick(self, index: int) -> None:
        """Ring a doorbell, and let the device serve it."""
        self.device.ring(index)
        self.settle()

    def buffer(self, content: bytes | int) -> tuple[int, int]:
        """A guest buffer with `content`, or of so many zero bytes: (address, length)."""
        data = bytes(content) if isinstance(content, int) else content
        address = self.allocator.take(max(len(data), 1))
        self.memory.write(address, data)
        return address, len(data)

    def close(self) -> None:
        self.device.close()
        self.loop.close()
        self.memory.close()


@contextmanager
def bench(device: VirtioDevice) -> Iterator[Bench]:
    it = Bench(device)
    try:
        yield it
    finally:
        it.close()


class FakeVector:
    """An MSI-X vector that remembers."""

    def __init__(self) -> None:
        self.fd = -1
        self.message = (0, 0)
        self.masked = True
        self.count = 0  # delivered
        self._pending = 0
        self.closed = False

    def trigger(self) -> None:
        if self.masked:
            self._pending += 1
        else:
            self.count += 1

    def update(self, address: int, data: int) -> None:
        self.message = (address, data)

    def mask(self, masked: bool) -> None:
        self.masked = masked
        if not masked and self._pending:
            self._pending = 0
            self.count += 1

    @property
    def pending(self) -> bool:
        return self._pending > 0

    def close(self) -> None:
        self.closed = True


class FakeIrq:
    """Hands out vectors."""

    def __init__(self) -> None:
        self.vectors: list[FakeVector] = []

    def msi(self) -> FakeVector:
        vector = FakeVector()
        self.vectors.append(vector)
        return vector


class Ioeventfds:
    """What KVM has been told: (address, length, datamatch) to eventfd."""

    def __init__(self) -> None:
        self.registered: dict[tuple[int, int, int | None], int] = {}

    def add(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        key = (address, length, datamatch)
        assert key not in self.registered
        self.registered[key] = fd

    def remove(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        os.fstat(fd)  # KVM wants it open
        assert self.registered.pop((address, length, datamatch)) == fd
