# SPDX-License-Identifier: GPL-2.0-only
"""Devices whose queues the host's kernel serves (vhost). No doorbell and no request passes through here."""

from __future__ import annotations

from unikvm.errors import GuestFault
from unikvm.sys.eventfd import EventFd
from unikvm.virtio.outside import Outside
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.sys.vhost import Vhost
    from unikvm.virtio.device import Transport

RINGS = 2  # of each of the kernel's devices


class InKernel(Outside):
    """A device type derives from this, and begins and ends to have a ring served in `start_ring` and `stop_ring`.

    It owns `vhosts`. Each serves two queues, the first one the first two; the others are the type's own, in `process`.
    """

    def __init__(self, *vhosts: Vhost) -> None:
        super().__init__()
        self._vhosts = vhosts
        self._errors: list[EventFd] = []
        self._handed: set[int] = set()  # queues that the kernel has
        self.open = True

    def start_ring(self, queue: Queue) -> None:
        """The kernel knows where the ring is: let it begin. OSError where it does not take it."""
        raise NotImplementedError

    def stop_ring(self, queue: Queue) -> int:
        """Let the kernel end; the next entry of the available ring."""
        raise NotImplementedError

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        served = RINGS * len(self._vhosts)
        for queue in self.queues[:served]:
            error = EventFd()
            self._errors.append(error)
            loop.add(error.fd, self._error_callback(queue, error))
        self.introduce()
        for queue in self.queues[served:]:
            self.listen(queue)

    def listen(self, queue: Queue) -> None:
        """Have `process` called for `queue`."""
        doorbell = self.doorbells[queue.index]
        self.loop.add(doorbell.fd, self._doorbell_callback(queue, doorbell))

    def goes_to_kernel(self, index: int) -> bool:
        """Whether the kernel is to serve queue `index` now."""
        return index < RINGS * len(self._vhosts)

    def introduce(self) -> None:
        """Tell the kernel what does not change with the driver's wishes."""
        regions = (*self.memory.regions, *self.memory.attached)
        table = [(region.gpa, region.size, region.hva) for region in regions]
        for vhost in self._vhosts:
            vhost.set_memory(table)
        for index, error in enumerate(self._errors):
            self._vhosts[index // RINGS].set_error(index % RINGS, error.fd)

    def close(self) -> None:
        with self.lock:
            super().close()
            for error in self._errors:
                self.loop.remove(error.fd)
                error.close()
            self._errors.clear()
        self.discard()

    def discard(self) -> None:
        if self.open:
            self.open = False
            for vhost in self._vhosts:
                vhost.close()

    def activated(self) -> None:
        for vhost in self._vhosts:
            vhost.set_features(self.driver_features)

    def hand_over(self, queue: Queue, base: int) -> None:
        index = queue.index
        if not self.goes_to_kernel(index):
            return
        vhost, ring = self._vhosts[index // RINGS], index % RINGS
        descriptors, available, used = map(self.memory.host_address, queue.areas)
        try:
            vhost.set_ring(ring, size=queue.size, base=base, descriptors=descriptors, available=available, used=used)
            vhost.set_kick(ring, self.doorbells[index].fd)
            vhost.set_call(ring, self.call_fd(index))
            self.start_ring(queue)
        except OSError as error:  # the ring was looked at, and is the driver's
            queue.stop()
            raise GuestFault(f"queue {index}: the kernel does not take it: {error.strerror}") from None
        self._handed.add(index)

    def release(self, queue: Queue) -> None:
        if queue.index in self._handed:
            self._handed.discard(queue.index)
            queue.seek(self.stop_ring(queue))

    def eventfd_changed(self, index: int) -> None:
        if index in self._handed:
            self._vhosts[index // RINGS].set_call(index % RINGS, self.call_fd(index))

    def _error_callback(self, queue: Queue, error: EventFd) -> Callable[[], None]:
        def malformed() -> None:
            raise GuestFault(f"queue {queue.index}: the kernel found it malformed")

        def failed() -> None:
            with self.lock:
                error.drain()
                if queue.active:
                    self.serve(malformed)

        return failed
