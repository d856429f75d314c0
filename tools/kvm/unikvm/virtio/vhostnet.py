# SPDX-License-Identifier: GPL-2.0-only
"""A network interface (virtio 1.2 §5.1) that the host's kernel serves: vhost-net moves frames between queues and a tap.

Neither a doorbell nor a frame passes through this process. Checksums and segmentation are left to whoever is last.
"""

from __future__ import annotations

from unikvm.errors import CannotRun, GuestFault
from unikvm.sys.eventfd import EventFd
from unikvm.uapi.vhost import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN
from unikvm.uapi.virtio import VIRTIO_F_VERSION_1, VIRTIO_ID_NET
from unikvm.uapi.virtio_net import (
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
)
from unikvm.virtio.net import net_config
from unikvm.virtio.outside import Outside
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.sys.vhost import VhostNet as Kernel
    from unikvm.virtio.device import Transport

    class Interface(Protocol):
        """A tap."""

        name: str
        fd: int

        def set_offloads(self, bits: int) -> None: ...

        def close(self) -> None: ...


# What the driver takes unfinished, and what the interface is told then.
_OFFLOADS = {
    VIRTIO_NET_F_GUEST_CSUM: TUN_F_CSUM,
    VIRTIO_NET_F_GUEST_TSO4: TUN_F_TSO4,
    VIRTIO_NET_F_GUEST_TSO6: TUN_F_TSO6,
    VIRTIO_NET_F_GUEST_ECN: TUN_F_TSO_ECN,
}
_OURS = (VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, *_OFFLOADS)
_INTERFACES = (VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN)


class VhostNet(Outside):
    """virtio-net between `tap` and the kernel's `vhost`, which it owns."""

    name = "net"
    device_id = VIRTIO_ID_NET
    queue_sizes = (256, 256)

    def __init__(self, tap: Interface, vhost: Kernel, *, mac: bytes) -> None:
        super().__init__()
        self._tap = tap
        self._vhost = vhost
        self._errors: list[EventFd] = []
        self._open = True
        if not vhost.features >> VIRTIO_F_VERSION_1 & 1:
            raise CannotRun("this host's vhost-net knows only devices from before virtio 1.0", hint="--net user")
        self.features = sum(1 << bit for bit in (*_OURS, *_INTERFACES)) | vhost.features & 1 << VIRTIO_NET_F_MRG_RXBUF
        self.config = net_config(mac, 0)

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        self._vhost.set_memory([(region.gpa, region.size, region.hva) for region in memory.regions])
        for queue in self.queues:
            error = EventFd()
            self._errors.append(error)
            self._vhost.set_error(queue.index, error.fd)
            loop.add(error.fd, self._error_callback(queue, error))

    def close(self) -> None:
        with self.lock:
            super().close()
            for error in self._errors:
                self.loop.remove(error.fd)
                error.close()
            self._errors.clear()
        self.discard()

    def discard(self) -> None:
        if self._open:
            self._open = False
            self._vhost.close()
            self._tap.close()

    def activated(self) -> None:
        bits = 0
        if self.negotiated(VIRTIO_NET_F_GUEST_CSUM):  # what the others need (§5.1.3.1)
            bits = sum(flag for bit, flag in _OFFLOADS.items() if self.negotiated(bit))
            if not bits & (TUN_F_TSO4 | TUN_F_TSO6):
                bits &= TUN_F_CSUM
        self._tap.set_offloads(bits)
        self._vhost.set_features(self.driver_features)

    def hand_over(self, queue: Queue, base: int) -> None:
        vhost, index = self._vhost, queue.index
        descriptors, available, used = map(self.memory.host_address, queue.areas)
        try:
            vhost.set_ring(index, size=queue.size, base=base, descriptors=descriptors, available=available, used=used)
            vhost.set_kick(index, self.doorbells[index].fd)
            vhost.set_call(index, self.call_fd(index))
            vhost.start(index, self._tap.fd)
        except OSError as error:  # the ring was looked at, and is the driver's
            queue.stop()
            raise GuestFault(f"queue {index}: the kernel does not take it: {error.strerror}") from None

    def release(self, queue: Queue) -> None:
        if queue.active:
            queue.seek(self._vhost.stop(queue.index))

    def eventfd_changed(self, index: int) -> None:
        if self.queues[index].active:
            self._vhost.set_call(index, self.call_fd(index))

    def _error_callback(self, queue: Queue, error: EventFd) -> Callable[[], None]:
        def malformed() -> None:
            raise GuestFault(f"queue {queue.index}: the kernel found it malformed")

        def failed() -> None:
            error.drain()
            if queue.active:
                self.serve(malformed)

        return failed
