# SPDX-License-Identifier: GPL-2.0-only
"""Devices whose requests may block, for seconds (fdatasync) or for good (a network file system whose server is gone):
each has a thread of its own, so that it holds up nobody else.

The thread holds `serving` while it carries requests out, and not `lock`: so registers can be read and written
meanwhile. `serving` comes after `lock`.

What must not happen in the middle of a request (a reset, a queue that is taken out of service) waits for its end, but
a vCPU does not wait for longer than PATIENCE. Then the thread does it when it can, and the driver sees by the status,
or by the queue's, that it has to wait (§2.4.2, §4.1.4.3.2, §4.2.2.2): until then the buffers are the device's.
"""

from __future__ import annotations

from unikvm.errors import GuestFault, UnikvmError
from unikvm.lean import Lock
from unikvm.sys.eventloop import EventLoop
from unikvm.sys.thread import Thread, hurry
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventfd import EventFd
    from unikvm.virtio.device import Transport
    from unikvm.virtio.state import VirtioState

PATIENCE = 2.0  # seconds that a vCPU, or who removes the device, waits for the request under way


def _nobody() -> None:
    """Stands for an interrupt to a driver that is gone."""


class Blocking(VirtioDevice):
    """A device type derives from this. `process` may block; between requests it looks at `interrupted`."""

    def __init__(self) -> None:
        super().__init__()
        self.serving = Lock()
        self.interrupted = False  # the requests that are left have to wait: leave `process`
        self._later: Callable[[], None] | None = None  # what waits for the request under way
        self._life = 0  # counts what ended one
        self._thread: Thread | None = None
        self._ended = False  # the thread, but for what it does then
        self._abandoned = False  # by `close`: the thread cleans up when it ends

    # What a device type overrides.

    def let_go(self) -> None:
        """Release what the device had before it was connected. This may block as well. Twice is once."""

    # Life

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        self._io = loop
        super().connect(memory, EventLoop(), transport)
        thread = Thread(self._main, self.name)
        thread.start()
        self._thread = thread

    def _main(self) -> None:
        hurry()
        try:
            self.loop.run()
        except Exception as error:
            defect = error
            self._io.call_soon(lambda: _throw(defect))
        finally:
            with self.lock:
                self._ended = True
                if self._abandoned:
                    self._release_all()

    def close(self) -> None:
        """Stop serving and release the descriptors; the request under way does so at its end where that takes longer
        than PATIENCE."""
        if self._thread is None:
            super().close()
        elif self.doorbells:
            self.loop.stop()
            self.interrupted = True
            self._thread.join(PATIENCE)
            with self.lock:
                if self._ended:
                    self._release_all()
                else:
                    self._abandoned = True
                    self._life += 1
                    for queue in self.queues:
                        queue.interrupt = _nobody
        self.discard()

    def _release_all(self) -> None:
        super().close()
        self.loop.close()
        self.let_go()

    def discard(self) -> None:
        if self._thread is None:
            self.let_go()

    # The driver, under the lock

    def reset(self) -> None:
        with self.lock:
            if self._later is not None:
                self._later = super().reset
            else:
                self._at_rest(super().reset)

    def needs_reset(self, fault: GuestFault) -> None:
        fail = super().needs_reset
        self._at_rest(lambda: fail(fault))

    def disable_queue(self, queue: Queue) -> None:
        disable = super().disable_queue
        self._at_rest(lambda: disable(queue))

    def write_status(self, value: int) -> None:
        with self.lock:
            if value == 0 or self._later is None:
                super().write_status(value)

    def save(self) -> VirtioState:
        """As of every device; UnikvmError where the request under way does not end."""
        states: list[VirtioState] = []
        save = super().save
        with self.lock:
            self._at_rest(lambda: states.append(save()))
            if self._later is not None:
                raise UnikvmError(f"{self.name}: a request does not end")
        return states[0]

    def restore(self, state: VirtioState) -> None:
        with self.lock:
            self.reset()
            if self._later is not None:
                raise UnikvmError(f"{self.name}: a request does not end")
            super().restore(state)

    def _at_rest(self, change: Callable[[], None]) -> None:
        """Carry out `change` while no request is, now or later. One is enough to wait for: a driver that wants more has
        to look, and then to reset the device."""
        with self.lock:
            if self._later is not None:
                return
            self.interrupted = True
            if self.serving.acquire(timeout=PATIENCE):
                self.interrupted = False
                try:
                    self._life += 1
                    change()
                finally:
                    self.serving.release()
            else:
                self._later = change

    # The thread

    def _doorbell_callback(self, queue: Queue, doorbell: EventFd) -> Callable[[], None]:
        serving = self.serving

        def rung() -> None:
            fault = None
            with serving:
                life = self._life
                doorbell.drain()
                if queue.active:
                    try:
                        self.process(queue)
                    except GuestFault as error:
                        fault = error
                    queue.flush()  # what was served before a fault is valid
            if fault is not None or self.interrupted:
                self._make_way(fault, life)

        return rung

    def _make_way(self, fault: GuestFault | None, life: int) -> None:
        """The lock is free when who waits for `serving` has it, or waits no more."""
        with self.lock:
            change, self._later, self.interrupted = self._later, None, False
            with self.serving:
                if fault is not None and life == self._life:
                    super().needs_reset(fault)
                if change is not None:
                    self._life += 1
                    change()


def _throw(error: Exception) -> None:
    raise error
