# SPDX-License-Identifier: GPL-2.0-only
"""Devices whose queues another process serves (vhost-user). Registers and life are here, requests are not.

The driver's doorbells are the back end's kicks: the eventfds that KVM signals go to it as they are. Its calls are the
eventfds that KVM injects interrupts for, where the transport has such (MSI-X); else the io thread passes them on. So
no request exits to this process, and with MSI-X none passes through it.

Threads and locks are those of `VirtioDevice`. A vCPU thread that sets the device up, or resets it, waits for the back
end's answers under the lock, for `channel.ANSWER_SECONDS` at most; a back end that is slower than that is ended.
Nothing that a back end does, its death included, goes further than its device. Drivers have no way to be told of it and
wait for answers for ever, so one that is not started again is replaced by `refuse`: every request that is under way or
comes later is answered with an error.
"""

from __future__ import annotations

import os
import time

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_F_VERSION_1
from unikvm.vhost.backend import Restarts, Reviver
from unikvm.vhost.channel import BackendError
from unikvm.vhost.frontend import FrontEnd, Inflight, Ring
from unikvm.virtio.outside import Outside
from unikvm.virtio.queue import Chain, Queue
from unikvm.virtio.underway import under_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop, Timer
    from unikvm.vhost.backend import Backend
    from unikvm.vhost.channel import Requests
    from unikvm.virtio.device import Transport

    Say = Callable[[str], object]


def _nobody(_line: str) -> None:
    """Stands for a user who is not told."""


class VhostUser(Outside):
    """A device type derives from this, and names its queues, and the features that it knows (`known_features`).

    `say` is told in one line when the back end is lost, and when it is back.
    """

    shares_memory = True
    known_features = 0  # what this type may offer beside the common bits, where the back end does
    listens = False  # whether the back end may say that its configuration, `FrontEnd.config`, has changed

    def __init__(self, backend: Backend, *, say: Say = _nobody) -> None:
        super().__init__()
        self.backend = backend
        self._say = say
        self._front: FrontEnd | None = None
        self._timer: Timer | None = None
        self._config = b""  # of the back end, as `reconfigured` had it last
        self._inflight: Inflight | None = None
        self._restarts = Restarts()
        self._reviver = Reviver()

    # What a device type overrides.

    def met(self, front: FrontEnd) -> None:
        """A back end was found: look at its features and its configuration; BackendError where they will not do."""

    def reconfigured(self, config: bytes) -> None:
        """The back end's configuration, when it was found and whenever it has changed: as `met`. Under the lock."""

    def refuse(self, chain: Chain) -> None:
        """The back end is lost for good: say so in the answer to a request."""

    # Life

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        try:
            self._adopt(self._meet())
        except BackendError as error:
            why = self.backend.why() or error.message
            raise CannotRun(f"{self.backend.name} cannot be used: {why}") from None

    def close(self) -> None:
        with self.lock:
            self._part()
            self._forget_inflight()
            super().close()
        if self._reviver.started:
            self.backend.stop()  # it need not wait for an answer any more
            self._reviver.join()
        self.discard()

    def discard(self) -> None:
        self.backend.close()

    @property
    def offered(self) -> int:
        return self.features | 1 << VIRTIO_F_VERSION_1

    def _meet(self) -> FrontEnd:
        """Find the back end and agree with it. BackendError where that fails, CannotRun where it cannot be started."""
        front = FrontEnd(self.backend.open(), self.backend.name)
        try:
            front.negotiate(len(self.queue_sizes), listens=self.listens)
            if not front.features >> VIRTIO_F_VERSION_1 & 1:
                raise BackendError(f"{self.backend.name} knows only devices from before virtio 1.0")
            self.met(front)
            front.set_memory(self.memory)
        except BaseException:
            front.close()
            raise
        return front

    def _adopt(self, front: FrontEnd) -> None:
        # What a driver accepted once stays on offer.
        if not self.features:
            self.features = front.features & (super().offered | self.known_features)
        self._front = front
        self._config = front.config
        self.reconfigured(front.config)
        self.loop.add(front.fd, self._look)
        requests = front.requests
        if requests is not None:
            self.loop.add(requests.fd, lambda: self._requested(front, requests))

    def _part(self) -> None:
        """Let go of the connection; the back end stops serving when it notices."""
        front, self._front = self._front, None
        if front is not None:
            self.loop.remove(front.fd)
            if front.requests is not None:
                self.loop.remove(front.requests.fd)
            front.close()

    # The driver's set-up and reset, under the lock.

    def activated(self) -> None:
        self._with_front(self._begin)

    def _begin(self, front: FrontEnd) -> None:
        front.set_features(self.driver_features)
        if self._inflight is None:
            self._inflight = front.get_inflight(len(self.queues), max(self.queue_sizes))
        if self._inflight is not None:
            front.set_inflight(self._inflight)

    def hand_over(self, queue: Queue, base: int) -> None:
        index = queue.index
        descriptors, available, used = map(self.memory.host_address, queue.areas)
        ring = Ring(index, queue.size, base, descriptors, available, used)
        self._with_front(lambda front: front.start_ring(ring, kick=self.doorbells[index].fd, call=self.call_fd(index)))

    def release(self, queue: Queue) -> None:
        """Take the ring back: nothing of the back end touches it when this returns."""
        if queue.active:
            self._with_front(lambda front: queue.seek(front.stop_ring(queue.index)))

    def stopped(self) -> None:
        self._forget_inflight()

    def eventfd_changed(self, index: int) -> None:
        if self.queues[index].active:
            self._with_front(lambda front: front.set_call(index, self.call_fd(index)))

    def _forget_inflight(self) -> None:
        record, self._inflight = self._inflight, None
        if record is not None:
            os.close(record.fd)

    # The back end's requests, and its end

    def _requested(self, front: FrontEnd, requests: Requests) -> None:
        """The back end says something by itself. It has its answer before the lock is waited for."""
        why, changed = "", False
        try:
            changed = requests.serve()
        except BackendError as error:
            why = error.message
        with self.lock:
            if front is not self._front:
                return
            if why:
                self._lost(why)
                return
            if requests.ended:
                self.loop.remove(requests.fd)
            if changed:
                self._with_front(FrontEnd.ask_config)
                self._watch()

    def _watch(self) -> None:
        """See that an answer which nobody waits for comes in time. On the loop's thread."""
        front = self._front
        if front is not None and front.due and not (self._timer is not None and self._timer.pending):
            self._timer = self.loop.call_later(max(0.0, front.due - time.monotonic()), self._late)

    def _late(self) -> None:
        with self.lock:
            self._with_front(FrontEnd.look)
            self._watch()

    def _look(self) -> None:
        with self.lock:
            self._with_front(FrontEnd.look)

    def _with_front(self, request: Callable[[FrontEnd], object]) -> None:
        """Ask something of the back end, if there is one; when it does not play along it is lost."""
        front = self._front
        if front is not None:
            try:
                request(front)
                if front.config is not self._config:  # it came before the answer to the request
                    self._config = front.config
                    self.reconfigured(front.config)
            except BackendError as error:
                self._lost(error.message)

    def _lost(self, why: str) -> None:
        self._part()
        why = self.backend.why() or why
        self.backend.stop()
        seconds = self._restarts.next() if self.backend.again else None
        self._say(f"{self.backend.name} is lost: {why}{': starting it again' if seconds is not None else ''}")
        if seconds is not None:
            later = seconds
            self.loop.call_soon(lambda: self.loop.call_later(later, self._revive))
        else:
            self._take_over()

    def _take_over(self) -> None:
        for queue, doorbell in zip(self.queues, self.doorbells, strict=True):
            self.loop.add(doorbell.fd, self._doorbell_callback(queue, doorbell))

        def answer() -> None:
            for queue in self.queues:
                if queue.active:
                    heads = under_way(queue)
                    queue.seek()
                    for head in heads:
                        self._answer(queue, queue.walk(head))
                    queue.flush()
                    queue.kick()

        self.serve(answer)

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            self._answer(queue, chain)

    def _answer(self, queue: Queue, chain: Chain) -> None:
        self.refuse(chain)
        queue.add_used(chain)

    def _revive(self) -> None:
        """Start the back end again."""
        with self.lock:
            if self._front is None and self.doorbells:
                self._reviver.start(self.loop, self._meet, self._found, self._not_found)

    def _not_found(self, why: str) -> None:
        with self.lock:
            if self.doorbells:
                self._lost(why)

    def _found(self, front: FrontEnd) -> None:
        """Give a successor the rings; it goes on where its predecessor ended."""
        with self.lock:
            if not self.doorbells:
                front.close()
                return
            self._adopt(front)
            self._say(f"{self.backend.name} is back")
            if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
                recorded = self._inflight is not None
                self.activated()
                self.serve(lambda: self._go_on(recorded=recorded))

    def _go_on(self, *, recorded: bool) -> None:
        """Give the rings to a successor, who takes what was under way from the record, or from the available ring."""
        for queue in self.queues:
            if queue.active:
                if not recorded:
                    queue.offer_again(under_way(queue))
                self.hand_over(queue, queue.used_index())
                queue.kick()
