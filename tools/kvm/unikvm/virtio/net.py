# SPDX-License-Identifier: GPL-2.0-only
"""A network interface (virtio 1.2 §5.1) whose frames this process moves, to and from a back end.

Frames go out straight from guest memory, many with one system call, and come in through a buffer from which they are
copied once. No checksums or segments are left to the other end: frames of up to MTU bytes take the place of that.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import GuestFault
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_ID_NET
from unikvm.uapi.virtio_net import (
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
)
from unikvm.vhost.backend import Restarts, Reviver
from unikvm.vhost.channel import BackendError
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.frames import HEADER
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import Transport
    from unikvm.virtio.frames import Frame

    Say = Callable[[str], object]

    class Owner(Protocol):
        """Who is at the other end of a line."""

        name: str  # for people

        @property
        def again(self) -> bool:
            """Whether another one can take its place."""
            ...

        def why(self) -> str: ...

        def stop(self) -> None: ...

        def close(self) -> None: ...

    class Line(Protocol):
        """Where frames go and come from: FrameStream says how. BackendError where it is lost."""

        fd: int

        def send(self, frames: Sequence[Frame]) -> int: ...

        def receive(self) -> bool: ...

        def frame(self) -> memoryview | None: ...

        def take(self, frame: memoryview) -> None: ...

        def close(self) -> None: ...


MAC = bytes.fromhex("525400123456")  # the only guest of its network
VLAN = 4  # bytes of a tag, which an MTU does not count
RECEIVE, TRANSMIT = 0, 1  # queues

_CONFIG = Struct("<6sHHH")  # struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu
_RECEIVED = Struct("<10xH")  # struct virtio_net_hdr_v1 of a frame that is complete: nothing but num_buffers


def net_config(mac: bytes, mtu: int, *, up: bool = True, pairs: int = 1) -> bytes:
    """The configuration space (§5.1.4)."""
    return _CONFIG.pack(mac, VIRTIO_NET_S_LINK_UP if up else 0, pairs, mtu)


def _nobody(_line: str) -> None:
    """Stands for a user who is not told."""


class Net(VirtioDevice):
    """virtio-net on the line that `plug` gives, with `backend` at the other end. Without that the link is down, and
    what is sent goes nowhere, until there is another one.
    """

    name = "net"
    device_id = VIRTIO_ID_NET
    queue_sizes = (256, 256)
    features = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MTU | 1 << VIRTIO_NET_F_MRG_RXBUF

    def __init__(
        self, backend: Owner, plug: Callable[[], Line], *, mtu: int, mac: bytes = MAC, say: Say = _nobody
    ) -> None:
        super().__init__()
        self.backend = backend
        self._plug = plug
        self._mac = mac
        self._mtu = mtu
        self._say = say
        self.config = net_config(mac, mtu)
        self._line: Line | None = None
        self._filling: list[Chain] = []  # receive buffers that were taken and are not enough for the next frame
        self._sending: list[tuple[Chain, Frame]] = []  # what the line did not take yet
        self._listening = (False, False)  # for input, for room
        self._restarts = Restarts()
        self._reviver = Reviver()

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        self._line = self._plug()

    def close(self) -> None:
        with self.lock:
            super().close()
            if self._line is not None:
                self._line.close()
                self._line = None
        self._reviver.join()
        self.discard()

    def discard(self) -> None:
        self.backend.close()

    def activated(self) -> None:
        self._listen(True, False)

    def stopped(self) -> None:
        self._listen(False, False)

    def release(self, queue: Queue) -> None:
        (self._filling if queue.index == RECEIVE else self._sending).clear()

    def held(self, queue: Queue) -> int:
        return len(self._filling if queue.index == RECEIVE else self._sending)

    def process(self, queue: Queue) -> None:
        self._with_line(self._deliver if queue.index == RECEIVE else self._transmit)
        if self._line is None and queue.index == TRANSMIT:
            for chain in queue.available():
                queue.add_used(chain)

    # The line

    def _with_line(self, move: Callable[[Line], None]) -> None:
        line = self._line
        if line is not None:
            try:
                move(line)
            except BackendError as error:
                self._lost(error.message)

    def _listen(self, readable: bool, writable: bool) -> None:
        wanted = (readable, writable)
        if self._line is None or wanted == self._listening:
            return
        if any(self._listening):
            self.loop.remove(self._line.fd)
        if any(wanted):
            self.loop.add(self._line.fd, self._readable if readable else None, self._writable if writable else None)
        self._listening = wanted

    def _readable(self) -> None:
        def receive(line: Line) -> None:
            # Once: the other descriptors of the loop have their turn before more is read.
            if line.frame() is None:
                line.receive()
            self._deliver(line)

        self._serve(RECEIVE, receive)

    def _writable(self) -> None:
        self._serve(TRANSMIT, self._transmit)

    def _serve(self, index: int, move: Callable[[Line], None]) -> None:
        queue = self.queues[index]

        def run() -> None:
            if queue.active:
                try:
                    self._with_line(move)
                finally:
                    queue.flush()  # what was served before a fault is valid
            else:  # the driver took it away alone: what is ready would be ready for ever; `process` listens again
                readable, writable = self._listening
                self._listen(readable and index != RECEIVE, writable and index != TRANSMIT)

        self.serve(run)

    def _lost(self, why: str) -> None:
        """The back end is no more: say so to the driver, as if the cable had been pulled."""
        self._listen(False, False)
        if self._line is not None:
            self._line.close()
            self._line = None
        why = self.backend.why() or why
        self.backend.stop()
        seconds = self._restarts.next() if self.backend.again else None
        self._say(f"{self.backend.name} is lost: {why}{': starting it again' if seconds is not None else ''}")
        if seconds is not None:
            later = seconds
            self.loop.call_soon(lambda: self.loop.call_later(later, self._revive))
        transmit = self.queues[TRANSMIT]
        if transmit.active:
            for chain, _ in self._sending:
                transmit.add_used(chain)
            transmit.kick()
        self._sending.clear()
        self._set_link(up=False)

    def _set_link(self, *, up: bool) -> None:
        config = net_config(self._mac, self._mtu, up=up)
        if config != self.config:
            self.config = config
            self.config_changed()

    def _revive(self) -> None:
        """Start the back end again."""

        def found(line: Line) -> None:
            self.serve(lambda: self._found(line))

        def failed(why: str) -> None:
            self.serve(lambda: self._lost(why))

        with self.lock:
            if self._line is None and self.doorbells:
                self._reviver.start(self.loop, self._plug, found, failed)

    def _found(self, line: Line) -> None:
        """The link is up again. Whom the guest was connected to is forgotten, but not its addresses."""
        if not self.doorbells:
            line.close()
            return
        self._line = line
        self._say(f"{self.backend.name} is back")
        self._set_link(up=True)
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
            self._listen(True, False)

    # Guest to host

    def _transmit(self, line: Line) -> None:
        queue = self.queues[TRANSMIT]
        waiting = self._sending
        if waiting:
            self._send(line, queue)
            if waiting:
                return  # `_writable` goes on, and what is in the ring waits
        for chain in queue.available():
            frame = self._frame(chain)
            if frame is None:
                queue.add_used(chain)
            else:
                waiting.append((chain, frame))
        self._send(line, queue)

    def _frame(self, chain: Chain) -> Frame | None:
        """What a transmit buffer has behind its header (§5.1.6.2); None for what is no frame of this link."""
        size = chain.readable_len - _RECEIVED.size
        if size < 0:
            raise GuestFault(f"a transmit buffer of {chain.readable_len} bytes")
        if not HEADER <= size <= self._mtu + HEADER + VLAN:
            return None
        chain.skip(_RECEIVED.size)
        return chain.readable, size

    def _send(self, line: Line, queue: Queue) -> None:
        waiting = self._sending
        sent = line.send([frame for _, frame in waiting])
        for chain, _ in waiting[:sent]:
            queue.add_used(chain)
        del waiting[:sent]
        blocked = bool(waiting)
        if self._listening[1] and not blocked:
            queue.kick()  # for what came into the ring in the meantime
        self._listen(self._listening[0], blocked)

    # Host to guest

    def _deliver(self, line: Line) -> None:
        """Give the guest what was received, as far as it has buffers; without them nothing more is read."""
        queue = self.queues[RECEIVE]
        frame = line.frame()
        while frame is not None:
            if not self._put(queue, frame):
                self._listen(False, self._listening[1])
                return
            line.take(frame)
            frame = line.frame()
        self._listen(True, self._listening[1])

    def _put(self, queue: Queue, frame: memoryview) -> bool:
        """Put one frame into receive buffers (§5.1.6.4); False where there are not enough yet."""
        chains = self._filling
        needed = _RECEIVED.size + len(frame)
        room = sum(chain.writable_len for chain in chains)
        merge = self.negotiated(VIRTIO_NET_F_MRG_RXBUF)
        while room < needed and (merge or not chains):
            chain = queue.pop()
            if chain is None and queue.rearm():
                chain = queue.pop()
            if chain is None:
                return False
            if chain.writable_len < _RECEIVED.size:
                raise GuestFault(f"a receive buffer of {chain.writable_len} bytes")
            chains.append(chain)
            room += chain.writable_len
        if room < needed:
            return True  # dropped: the driver's buffers are too small, and it did not want to have them merged
        chains[0].write(_RECEIVED.pack(len(chains)))
        for chain in chains:
            frame = frame[chain.write(frame) :]
            queue.add_used(chain)
        chains.clear()
        return True
