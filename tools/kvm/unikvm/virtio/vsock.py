# SPDX-License-Identifier: GPL-2.0-only
"""Sockets between guest and host (virtio 1.2 §5.10), which the host's kernel serves: no byte passes through here.

The guest's number (CID) is this process's choice, and after a restore another one: the driver is told by an event,
looks it up again and ends the connections that it had.
"""

from __future__ import annotations

from unikvm.errors import CannotRun, GuestFault
from unikvm.uapi.virtio import VIRTIO_F_VERSION_1, VIRTIO_ID_VSOCK
from unikvm.uapi.virtio_vsock import VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
from unikvm.virtio.inkernel import InKernel
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.sys.vhost import VhostVsock as Kernel
    from unikvm.virtio.state import VirtioState

_RX, _TX, _EVENT = range(3)
_RESET = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")


class Vsock(InKernel):
    """virtio-vsock of the guest with the number `cid`, which `vhost` has been told."""

    name = "vsock"
    device_id = VIRTIO_ID_VSOCK
    queue_sizes = (128, 128, 16)

    def __init__(self, vhost: Kernel, cid: int) -> None:
        super().__init__(vhost)
        if not vhost.features >> VIRTIO_F_VERSION_1 & 1:
            raise CannotRun("this host's vhost-vsock knows only devices from before virtio 1.0")
        self.cid = cid
        self.config = cid.to_bytes(8, "little")
        self._kernel = vhost
        self._placed: set[int] = set()  # rings that the kernel knows; it serves when it knows both
        self._ran = False
        self._new_cid = False  # which the driver has not been told yet

    def close(self) -> None:
        with self.lock:
            self._ran = False
            super().close()

    def process(self, queue: Queue) -> None:
        """The event queue: its buffers wait for the one event there is."""
        if not self._new_cid:
            return
        chain = queue.pop()
        if chain is None:
            if queue.rearm():
                queue.kick()
            return
        if not chain.write(_RESET):
            raise GuestFault("an event buffer without room")
        self._new_cid = False
        queue.add_used(chain)

    def start_ring(self, queue: Queue) -> None:
        if self._placed | {queue.index} == {_RX, _TX}:
            self._kernel.run(True)
            self._ran = True
        self._placed.add(queue.index)

    def stop_ring(self, queue: Queue) -> int:
        if self._placed == {_RX, _TX}:
            self._kernel.run(False)
        self._placed.discard(queue.index)
        return self._kernel.position(queue.index)

    def stopped(self) -> None:
        """The driver forgets its connections: their ends on this host must not wait for it."""
        self._placed.clear()
        if self._ran:
            self._ran = False
            self._kernel.begin_again(self.cid)
            self.introduce()

    def restore(self, state: VirtioState) -> None:
        super().restore(state)
        with self.lock:
            self._new_cid = True
            if self.queues[_EVENT].active:
                self.queues[_EVENT].kick()
