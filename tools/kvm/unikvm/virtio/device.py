# SPDX-License-Identifier: GPL-2.0-only
"""What every virtio device has (virtio 1.2 §2 and §3): status, features, queues, configuration.

Threads. Register accesses come on vCPU threads; queues are served on the `io` thread, by callbacks of the
doorbells. `VirtioDevice.lock` protects the status, the features, the queues' set-up and everything a device
type keeps. The io thread holds it while it serves a queue, a vCPU thread while it changes the status, so once
a reset has returned no callback of the old life touches guest memory: the callback finds its queue inactive,
under the lock. Lock order: PciBus.lock, then this one, then those of the interrupt controller and the event
loop.
"""

from __future__ import annotations

from unikvm.errors import GuestFault, UnikvmError
from unikvm.lean import RLock
from unikvm.sys.eventfd import EventFd
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.state import DeviceState, VirtioState

    class Transport(Protocol):
        """How a device reaches its driver."""

        def queue_interrupt(self, index: int) -> Callable[[], None]:
            """The function that sends queue `index`'s used buffer notification (§2.9).

            Callable from any thread.
            """
            ...

        def queue_eventfd(self, index: int) -> int:
            """The eventfd that interrupts the driver for queue `index` without this process; -1 where there is none.

            For devices whose queues are served elsewhere; `VirtioDevice.eventfd_changed` says when to ask again.
            """
            ...

        def config_interrupt(self) -> None:
            """Send a configuration change notification (§2.3)."""
            ...


# What a driver may write into the status register; NEEDS_RESET is the device's.
_DRIVER_STATUS = (
    VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED
)
_COMMON_FEATURES = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX


class VirtioDevice:
    """A device type derives from this, names its queues and features, and serves them in `process`."""

    name = "virtio"
    device_id = 0
    queue_sizes: tuple[int, ...] = ()
    shares_memory = False  # whether another process has to map guest RAM
    features = 0  # what this type offers, a bit mask; the common bits are added
    config = b""  # device configuration space (§2.5), little-endian

    def __init__(self) -> None:
        self.lock = RLock()
        self.status = 0
        self.driver_features = 0
        self.config_generation = 0
        self.fault = ""  # why the device needs a reset, for people
        self.queues: list[Queue] = []
        self.doorbells: list[EventFd] = []

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        """Called once by the transport: create the queues and listen to their doorbells."""
        self.memory = memory
        self.loop = loop
        self._transport = transport
        for index, size in enumerate(self.queue_sizes):
            queue = Queue(index, size)
            doorbell = EventFd()
            queue.interrupt = transport.queue_interrupt(index)
            queue.kick = doorbell.signal
            self.queues.append(queue)
            self.doorbells.append(doorbell)
            loop.add(doorbell.fd, self._doorbell_callback(queue, doorbell))

    def close(self) -> None:
        """Stop serving and release the descriptors. Any thread may: what is called back takes the lock first."""
        with self.lock:
            self.reset()
            for doorbell in self.doorbells:
                self.loop.remove(doorbell.fd)
                doorbell.close()
            self.doorbells.clear()

    # What a device type overrides.

    def discard(self) -> None:
        """Release what the device had before it was connected; also called, without effect, after `close`."""

    def process(self, queue: Queue) -> None:
        """Serve the available chains of `queue`.

        On the io thread, under the lock; GuestFault may be raised.
        """
        raise NotImplementedError

    def activated(self) -> None:
        """The driver is ready.

        `driver_features` and the queues are final. Under the lock, on a vCPU thread.
        """

    def release(self, queue: Queue) -> None:
        """Forget the chains of `queue` that were taken and not given back. Under the lock, on any thread."""

    def stopped(self) -> None:
        """A reset or a fault: forget what the driver said, after `release` for each queue. As `release`."""

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the configuration space. Most types have nothing writable."""

    def eventfd_changed(self, index: int) -> None:
        """`Transport.queue_eventfd` gives another answer for queue `index`. Under the lock."""

    def save_type(self) -> DeviceState | None:
        """What the type adds to a snapshot."""
        return None

    def restore_type(self, state: DeviceState) -> None:
        """Take over what `save_type` gave."""

    def held(self, queue: Queue) -> int:
        """How many chains of `queue` were taken and not given back: they are taken again after a restore."""
        return 0

    # Services for device types.

    def negotiated(self, bit: int) -> bool:
        """Whether the driver accepted feature number `bit`."""
        return bool(self.driver_features >> bit & 1)

    def serve(self, function: Callable[[], None]) -> None:
        """Run `function` as a back end's callback: under the lock, and with the guest's faults contained."""
        with self.lock:
            try:
                function()
            except GuestFault as fault:
                self.needs_reset(fault)

    def config_changed(self) -> None:
        """The configuration space has new content (under the lock)."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
            self._transport.config_interrupt()

    def needs_reset(self, fault: GuestFault) -> None:
        """The driver broke the rules: serve nothing until it resets the device (§2.1.2). Under the lock."""
        self.fault = str(fault)
        self._stop()
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET
        self.config_changed()

    # What transports call.

    @property
    def offered(self) -> int:
        """All feature bits on offer."""
        return self.features | _COMMON_FEATURES

    def accept_features(self, select: int, value: int) -> None:
        """The driver writes 32 feature bits, number 32 * `select` up. Ignored once they are agreed on."""
        with self.lock:
            if self.status & VIRTIO_CONFIG_S_FEATURES_OK or select > 1:
                return
            shift = 32 * select
            self.driver_features = self.driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def offered_features(self, select: int) -> int:
        """Offered feature bits, number 32 * `select` up."""
        return self.offered >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    def read_config(self, offset: int, size: int) -> int:
        """Read the configuration space; what lies beyond reads as zero. Under the lock, as the generation is read: who
        finds the same before and after his reads has read one content (§2.5.1)."""
        with self.lock:
            return int.from_bytes(self.config[offset : offset + size], "little")

    def write_status(self, value: int) -> None:
        """The driver writes the status register (§2.1, §3.1)."""
        with self.lock:
            if value == 0:
                self.reset()
                return
            old = self.status
            new = old & VIRTIO_CONFIG_S_NEEDS_RESET | value & _DRIVER_STATUS
            if new & ~old & VIRTIO_CONFIG_S_FEATURES_OK and not self._features_agreed():
                new &= ~VIRTIO_CONFIG_S_FEATURES_OK
            if not new & VIRTIO_CONFIG_S_FEATURES_OK:
                new &= ~VIRTIO_CONFIG_S_DRIVER_OK  # §3.1.1: there is no life without agreed features
            self.status = new
            if new & ~old & VIRTIO_CONFIG_S_DRIVER_OK and not new & VIRTIO_CONFIG_S_NEEDS_RESET:
                self._activate()

    def enable_queue(self, queue: Queue) -> None:
        """The driver says that `queue` is set up."""
        with self.lock:
            if queue.ready:
                return
            queue.ready = True
            if self.status & VIRTIO_CONFIG_S_DRIVER_OK and not self.status & VIRTIO_CONFIG_S_NEEDS_RESET:
                self.serve(lambda: self._start(queue))

    def disable_queue(self, queue: Queue) -> None:
        """Take `queue` out of service (virtio-mmio's QueueReady 0)."""
        with self.lock:
            self.release(queue)
            queue.stop()
            queue.ready = False

    def reset(self) -> None:
        """Back to power-on. When this returns, nothing of the old life touches guest memory any more."""
        with self.lock:
            self._stop()
            for queue in self.queues:
                queue.reset()
            self.status = 0
            self.driver_features = 0
            self.fault = ""

    def ring(self, index: int) -> None:
        """The driver notifies queue `index` by a write that KVM did not catch."""
        if index < len(self.doorbells):
            self.doorbells[index].signal()

    def save(self) -> VirtioState:
        """The state for a snapshot; the vCPUs must be stopped. What was served is published first."""
        from unikvm.virtio.state import VirtioState

        with self.lock:
            for queue in self.queues:
                if queue.active:
                    queue.flush()
            return VirtioState(
                device_id=self.device_id,
                status=self.status,
                driver_features=self.driver_features,
                config_generation=self.config_generation,
                queues=tuple(queue.save(self.held(queue)) for queue in self.queues),
                device=self.save_type(),
            )

    def restore(self, state: VirtioState) -> None:
        """Take over `state`, with guest RAM restored already.

        Raises UnikvmError when it is another device's.
        """
        if state.device_id != self.device_id or len(state.queues) != len(self.queues):
            raise UnikvmError(f"{self.name}: the snapshot has another device here (type {state.device_id})")
        with self.lock:
            self.reset()
            for queue, queue_state in zip(self.queues, state.queues, strict=True):
                queue.restore(queue_state)
            self.status = state.status
            self.driver_features = state.driver_features
            self.config_generation = state.config_generation
            if state.device is not None:
                self.restore_type(state.device)
            if self.status & VIRTIO_CONFIG_S_DRIVER_OK and not self.status & VIRTIO_CONFIG_S_NEEDS_RESET:
                self._activate()

    def _features_agreed(self) -> bool:
        accepted = self.driver_features
        return not accepted & ~self.offered and bool(accepted >> VIRTIO_F_VERSION_1 & 1)

    def _activate(self) -> None:
        def start() -> None:
            self.activated()
            for queue in self.queues:
                if queue.ready:
                    self._start(queue)

        self.serve(start)

    def _start(self, queue: Queue) -> None:
        queue.start(self.memory, self.driver_features)
        queue.kick()  # what the driver made available before it was ready counts (§3.1.1)

    def _stop(self) -> None:
        for queue in self.queues:
            self.release(queue)
            queue.stop()
        self.stopped()

    def _doorbell_callback(self, queue: Queue, doorbell: EventFd) -> Callable[[], None]:
        lock = self.lock

        def rung() -> None:
            with lock:
                doorbell.drain()  # with the lock: `close` may come on another thread
                if not queue.active:
                    return
                try:
                    self.process(queue)
                    queue.flush()
                except GuestFault as fault:
                    queue.flush()  # what was served before the fault is valid
                    self.needs_reset(fault)

        return rung
