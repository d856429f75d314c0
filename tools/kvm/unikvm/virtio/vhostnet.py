# SPDX-License-Identifier: GPL-2.0-only
"""A network interface (virtio 1.2 §5.1) that the host's kernel serves: vhost-net moves frames between queues and a tap.

Neither a doorbell nor a frame passes through this process. Checksums and segmentation are left to whoever is last.
"""

from __future__ import annotations

from unikvm.errors import CannotRun
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
from unikvm.virtio.inkernel import InKernel
from unikvm.virtio.net import net_config
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from unikvm.sys.vhost import VhostNet as Kernel

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


class VhostNet(InKernel):
    """virtio-net between `tap` and the kernel's `vhost`, which it owns."""

    name = "net"
    device_id = VIRTIO_ID_NET
    queue_sizes = (256, 256)

    def __init__(self, tap: Interface, vhost: Kernel, *, mac: bytes) -> None:
        super().__init__(vhost)
        self._tap = tap
        self._net = vhost
        if not vhost.features >> VIRTIO_F_VERSION_1 & 1:
            raise CannotRun("this host's vhost-net knows only devices from before virtio 1.0", hint="--net user")
        self.features = sum(1 << bit for bit in (*_OURS, *_INTERFACES)) | vhost.features & 1 << VIRTIO_NET_F_MRG_RXBUF
        self.config = net_config(mac, 0)

    def discard(self) -> None:
        if self.open:
            self._tap.close()
        super().discard()

    def activated(self) -> None:
        bits = 0
        if self.negotiated(VIRTIO_NET_F_GUEST_CSUM):  # what the others need (§5.1.3.1)
            bits = sum(flag for bit, flag in _OFFLOADS.items() if self.negotiated(bit))
            if not bits & (TUN_F_TSO4 | TUN_F_TSO6):
                bits &= TUN_F_CSUM
        self._tap.set_offloads(bits)
        super().activated()

    def start_ring(self, queue: Queue) -> None:
        self._net.start(queue.index, self._tap.fd)

    def stop_ring(self, queue: Queue) -> int:
        return self._net.stop(queue.index)
