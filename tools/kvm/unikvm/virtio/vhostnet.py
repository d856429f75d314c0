# SPDX-License-Identifier: GPL-2.0-only
"""A network interface (virtio 1.2 §5.1) that the host's kernel serves: vhost-net moves frames between queues and a tap.

Neither a doorbell nor a frame passes through this process. Checksums and segmentation are left to whoever is last.

With several queues there is a device of vhost-net and a descriptor of the tap for each pair of them, and a control
queue, which is served here: by it the driver says how many pairs it uses (§5.1.6.5.5), one at first. The interface
hands frames only to those.
"""

from __future__ import annotations

from unikvm.errors import CannotRun, GuestFault
from unikvm.uapi.vhost import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN
from unikvm.uapi.virtio import VIRTIO_F_VERSION_1, VIRTIO_ID_NET
from unikvm.uapi.virtio_net import (
    VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_OK,
)
from unikvm.virtio.inkernel import RINGS, InKernel
from unikvm.virtio.net import net_config
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from unikvm.sys.vhost import VhostNet as Kernel
    from unikvm.virtio.state import DeviceState

    class Interface(Protocol):
        """A tap, with a descriptor for each of its queues."""

        name: str
        fds: list[int]

        def set_offloads(self, bits: int) -> None: ...

        def enable(self, index: int, on: bool) -> None: ...

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


_QUEUE = 256  # entries
_SET_PAIRS = bytes([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET])
_REQUEST = len(_SET_PAIRS) + 2  # with the number
_CONTROL_QUEUE = 64  # as QEMU's


class VhostNet(InKernel):
    """virtio-net between `tap` and the kernel's `vhosts`, one for each of its queues, which it owns."""

    name = "net"
    device_id = VIRTIO_ID_NET
    queue_sizes: tuple[int, ...] = (_QUEUE, _QUEUE)

    def __init__(self, tap: Interface, vhosts: Sequence[Kernel], *, mac: bytes) -> None:
        super().__init__(*vhosts)
        self._tap = tap
        self._kernels = vhosts
        features = vhosts[0].features
        if not features >> VIRTIO_F_VERSION_1 & 1:
            raise CannotRun("this host's vhost-net knows only devices from before virtio 1.0", hint="--net user")
        self.features = sum(1 << bit for bit in (*_OURS, *_INTERFACES)) | features & 1 << VIRTIO_NET_F_MRG_RXBUF
        self._most = len(vhosts)
        self._pairs = 1  # that the driver uses
        self._enabled = self._most  # of the interface's queues
        self._moved_control = False  # of a driver that knows one pair only
        if self._most > 1:
            self.features |= 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ
            self.queue_sizes = (_QUEUE,) * (RINGS * self._most) + (_CONTROL_QUEUE,)
        self.config = net_config(mac, 0, pairs=self._most)

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
        self._enable(self._pairs)
        if self.negotiated(VIRTIO_NET_F_CTRL_VQ) and not self.negotiated(VIRTIO_NET_F_MQ):
            # Its control queue is behind the two that it knows of (§5.1.2).
            self.listen(self.queues[RINGS])
            self._moved_control = True

    def stopped(self) -> None:
        if self._moved_control:
            self.loop.remove(self.doorbells[RINGS].fd)
            self._moved_control = False
        self._pairs = 1

    def goes_to_kernel(self, index: int) -> bool:
        return index < RINGS * self._pairs

    def start_ring(self, queue: Queue) -> None:
        pair, ring = divmod(queue.index, RINGS)
        self._kernels[pair].start(ring, self._tap.fds[pair])

    def stop_ring(self, queue: Queue) -> int:
        pair, ring = divmod(queue.index, RINGS)
        return self._kernels[pair].stop(ring)

    def save_type(self) -> DeviceState | None:
        from unikvm.virtio.state import NetState

        return NetState(pairs=self._pairs) if self._most > 1 else None

    def restore_type(self, state: DeviceState) -> None:
        from unikvm.virtio.state import NetState

        if isinstance(state, NetState) and 1 <= state.pairs <= self._most:
            self._pairs = state.pairs

    # The control queue

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            ack = chain.take_last()
            ack[0] = VIRTIO_NET_OK if self._command(chain) else VIRTIO_NET_ERR
            queue.add_used(chain)

    def _command(self, chain: Chain) -> bool:
        """Do what the driver asks for; whether that was possible. There is one command."""
        request = chain.read(_REQUEST + 1)
        if len(request) != _REQUEST or request[:2] != _SET_PAIRS or not self.negotiated(VIRTIO_NET_F_MQ):
            return False
        pairs = int.from_bytes(request[2:], "little")
        if not 1 <= pairs <= self._most:
            return False
        self._use(pairs)
        return True

    def _use(self, pairs: int) -> None:
        """Have `pairs` of queues served, from the first on."""
        self._pairs = pairs
        served = self.queues[: RINGS * self._most]
        for queue in served[RINGS * pairs :]:
            self.release(queue)
        self._enable(pairs)
        for queue in served[: RINGS * pairs]:
            if queue.active and queue.index not in self._handed:
                self.hand_over(queue, queue.position)
                queue.kick()

    def _enable(self, pairs: int) -> None:
        """Have the interface hand frames to that many of its queues."""
        try:
            while self._enabled > pairs:
                self._tap.enable(self._enabled - 1, False)
                self._enabled -= 1
            while self._enabled < pairs:
                self._tap.enable(self._enabled, True)
                self._enabled += 1
        except OSError as error:
            raise GuestFault(f"the interface does not change its queues: {error.strerror}") from None
