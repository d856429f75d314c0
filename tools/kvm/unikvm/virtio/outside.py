# SPDX-License-Identifier: GPL-2.0-only
"""Devices whose queues are served outside this process: by another one (vhost-user), or by the host's kernel (vhost).

The driver's doorbells are the server's kicks: the eventfds that KVM signals go to it as they are. Its calls are the
eventfds that KVM injects interrupts for, where the transport has such (MSI-X); else the io thread passes them on.
"""

from __future__ import annotations

from unikvm.sys.eventfd import EventFd
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import Transport
    from unikvm.virtio.state import VirtioState


class Outside(VirtioDevice):
    """A way of serving derives from this, and gives queues away in `hand_over` and takes them back in `release`."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[EventFd] = []

    def hand_over(self, queue: Queue, base: int) -> None:
        """Let `queue`, which is started, be served from entry `base` of its available ring. Under the lock."""
        raise NotImplementedError

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        self.memory = memory
        self.loop = loop
        self._transport = transport
        for index, size in enumerate(self.queue_sizes):
            queue = Queue(index, size)
            doorbell, call = EventFd(), EventFd()
            queue.interrupt = transport.queue_interrupt(index)
            queue.kick = doorbell.signal
            self.queues.append(queue)
            self.doorbells.append(doorbell)
            self._calls.append(call)
            loop.add(call.fd, self._call_callback(queue, call))

    def close(self) -> None:
        with self.lock:
            super().close()
            for call in self._calls:
                self.loop.remove(call.fd)
                call.close()
            self._calls.clear()

    def _start(self, queue: Queue) -> None:
        queue.start(self.memory, self.driver_features)
        self.hand_over(queue, queue.position)
        queue.kick()  # what the driver made available before counts (§3.1.1), and what came while nobody was there

    def save(self) -> VirtioState:
        """As of every device: the rings are taken back for it, which ends what is under way."""
        with self.lock:
            served = [queue for queue in self.queues if queue.active]
            for queue in served:
                self.release(queue)
            state = super().save()
            for queue in served:
                self.hand_over(queue, queue.position)
                queue.kick()
            return state

    def call_fd(self, index: int) -> int:
        """The eventfd that the server signals for queue `index`; another one after `eventfd_changed`."""
        fd = self._transport.queue_eventfd(index)
        return fd if fd >= 0 else self._calls[index].fd

    def _call_callback(self, queue: Queue, call: EventFd) -> Callable[[], None]:
        def called() -> None:
            with self.lock:
                call.drain()
                if queue.active:
                    queue.interrupt()

        return called
