# SPDX-License-Identifier: GPL-2.0-only
"""One port of a virtio console: a byte stream each way between a guest and file descriptors, nothing lost.

Host to guest: the source is read only while the guest has the port open and has buffers for it, straight into
them. Guest to host: a chain that the sink does not take whole is kept until it does; the guest gets its
buffer back then.

Everything here runs on the io thread under the device's lock, except where a docstring says otherwise.
"""

from __future__ import annotations

import os
import stat

from unikvm.lean import deque
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.state import PortState

    class Host(Protocol):
        """What a port needs of its device."""

        def serve(self, function: Callable[[], None]) -> None:
            """Run a back end's callback under the lock, with the guest's faults contained."""
            ...

        def port_open(self, number: int, is_open: bool) -> None:
            """Tell the driver whether the host's side of port `number` is open."""
            ...

    Sink = Callable[[bytes], object]


BATCH = 16  # receive chains filled by one readv; Linux gives a page with each
READ_SIZE = BATCH * 4096  # bytes read at once where they cannot go straight into guest memory
_PTMX = os.makedev(5, 2)


class Watch:
    """Waits for one direction of a descriptor, switched on and off.

    What epoll refuses (files) is always ready.
    """

    def __init__(self, loop: EventLoop, fd: int, callback: Callable[[], None], *, write: bool = False) -> None:
        self._loop = loop
        self._fd = fd
        self._callback = callback
        self._write = write
        self._pollable = True
        self.active = False

    def on(self) -> None:
        """Call back once, or again and again, while the descriptor is ready."""
        if self.active:
            return
        self.active = True
        if self._pollable:
            try:
                if self._write:
                    self._loop.add(self._fd, None, self._callback)
                else:
                    self._loop.add(self._fd, self._callback)
                return
            except PermissionError:
                self._pollable = False
        self._loop.call_soon(self._soon)

    def off(self) -> None:
        """No more callbacks; one that is under way on the loop's thread finds `active` false."""
        if self.active:
            self.active = False
            if self._pollable:
                self._loop.remove(self._fd)

    def _soon(self) -> None:
        if self.active:
            self._callback()
            if self.active:
                self._loop.call_soon(self._soon)


class Port:
    """A port named `name` in the guest (/sys/class/virtio-ports/*/name).

    source: descriptor that is read for the guest; its end closes the host's side (PORT_OPEN 0).
    sink: descriptor that is written with what the guest sends, or a function that takes bytes and does not
    block;
        None drops them. When it breaks (EPIPE) the rest is dropped, and the host's side is closed as well.
    transform: sees what was read from `source` and returns what the guest shall get (an escape key, say).
    on_guest_open: called with the guest's side of the port, open or not, after everything it sent is in the
    sink. on_sink_lost: called with the error when the sink breaks.

    tap: reads along: called with what went to a `sink` that is a descriptor.

    The descriptors stay the caller's: the port works on duplicates. Callbacks come on the io thread and must
    not block.
    """

    def __init__(
        self,
        name: str = "",
        *,
        source: int | None = None,
        sink: int | Sink | None = None,
        transform: Callable[[bytes], bytes] | None = None,
        on_guest_open: Callable[[bool], None] | None = None,
        on_sink_lost: Callable[[OSError], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
        on_source_end: Callable[[int], None] | None = None,
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        self.name = name
        self.number = 0
        self.ready = False  # the driver knows the port
        self.guest_open = False
        self.host_open = True
        self.keep_open = False  # the console: a port that the end of its source does not close
        self._source = os.dup(source) if source is not None else -1
        self._sink_fd, self._sink_restore = _open_sink(sink) if isinstance(sink, int) else (-1, False)
        self._sink: Sink | None = None if isinstance(sink, int) else sink
        self._transform = transform
        self._on_guest_open = on_guest_open
        self._on_sink_lost = on_sink_lost
        self._on_sent = on_sent
        self._on_source_end = on_source_end
        self._tap = tap
        self._total = 0  # bytes for the guest
        self._pending = bytearray()  # for the guest, before what is still in the source
        self._ended = False  # the host's side closes when `_pending` is out
        self._held: deque[Chain] = deque()  # receive chains with room
        self._depth = 0  # the most receive chains that the driver has had in the ring at once
        self._blocked: Chain | None = None  # transmit chain that the sink did not take whole
        self._blocked_len = 0  # bytes of it at first
        self._resume = 0  # bytes of the next transmit chain that went out before a snapshot
        self._closing = False  # the guest closed, but the sink has not everything yet
        self._source_watch: Watch | None = None
        self._sink_watch: Watch | None = None

    def connect(self, host: Host, loop: EventLoop, number: int, receive: Queue, transmit: Queue) -> None:
        """Called once by the device."""
        self.number = number
        self._host = host
        self._loop = loop
        self._receive = receive
        self._transmit = transmit
        if self._source >= 0:
            self._source_watch = Watch(loop, self._source, lambda: host.serve(self._source_ready))
        if self._sink_fd >= 0:
            self._sink_watch = Watch(loop, self._sink_fd, lambda: host.serve(self._sink_ready), write=True)

    def close(self) -> None:
        """Release the descriptors and put their flags back."""
        self._drop_source()
        self._drop_sink()

    # For the host, from any thread once the device is connected.

    def send(self, data: bytes) -> None:
        """Give `data` to the guest, before what the source has not delivered yet."""

        def queue() -> None:
            self._pending += data
            self._total += len(data)
            self.refill()

        self._loop.call_soon(lambda: self._host.serve(queue))

    def hang_up(self) -> None:
        """Close the host's side, after what was sent."""
        self._loop.call_soon(lambda: self._host.serve(self._end))

    # For the device.

    def set_guest_open(self, is_open: bool) -> None:
        """The driver opened or closed its side."""
        if is_open:
            self._closing = False
            if not self.guest_open:
                self.guest_open = True
                self._tell(True)
            self.refill()
            return
        if not self.guest_open:
            return
        self.guest_open = False
        if self._source_watch is not None:
            self._source_watch.off()
        if self._transmit.active:
            self.transmit()  # what the guest sent before it closed comes first
        if self._blocked is None:
            self._tell(False)
        else:
            self._closing = True

    def release(self, queue: Queue) -> None:
        """Forget the chains of `queue`."""
        if queue is self._receive:
            self._held.clear()
            self._depth = 0
        elif self._blocked is not None:
            self._blocked = None
            if self._sink_watch is not None:
                self._sink_watch.off()

    def reset(self) -> None:
        """The driver is gone. What it did not receive waits for the next one."""
        self.ready = False
        self._resume = 0
        if self._source_watch is not None:
            self._source_watch.off()
        if self.guest_open or self._closing:
            self.guest_open = self._closing = False
            self._tell(False)

    def held(self, queue: Queue) -> int:
        """Chains of `queue` that were not given back."""
        if queue is self._receive:
            return len(self._held)
        return int(self._blocked is not None)

    def refill(self) -> None:
        """The guest has buffers, or may have: deliver what waits, then listen to the source."""
        if not self.guest_open or not self._receive.active:
            return
        if self._pending:
            self._deliver()
        if self._ended and not self._pending:
            self._close_host()
        elif self._source_watch is not None and not self._pending and self._gather():
            self._source_watch.on()

    def transmit(self) -> None:
        """Take what the guest sends, as far as the sink takes it."""
        queue = self._transmit
        if self._blocked is not None:
            return  # `_sink_ready` goes on
        for _ in range(queue.size):
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                queue.flush()
                return
            length = chain.readable_len
            if self._resume:
                chain.skip(min(self._resume, length))
                self._resume = 0
            if not self._put(chain, length):
                queue.flush()
                return
            queue.add_used(chain)
        queue.flush()
        queue.kick()  # there may be more: others have their turn first

    def save(self) -> PortState:
        from unikvm.virtio.state import PortState

        return PortState(
            ready=self.ready,
            guest_open=self.guest_open,
            host_open=self.host_open,
            pending=bytes(self._pending),
            sent=self._blocked_len - self._blocked.readable_len if self._blocked is not None else self._resume,
        )

    def restore(self, state: PortState) -> None:
        self.ready = state.ready
        self.guest_open = state.guest_open
        self.host_open = state.host_open
        self._pending[:] = state.pending
        self._resume = state.sent

    # Host to guest.

    def _gather(self) -> bool:
        """Hold up to BATCH receive chains.

        False when the guest has none. The doorbell rings then when half of those have come back that it had before:
        a driver gives each back as soon as its bytes are read, and one at a time would be a doorbell a page.
        """
        queue = self._receive
        held = self._held
        self._depth = max(self._depth, min(queue.distance(), queue.size))
        while len(held) < BATCH:
            chain = queue.pop()
            if chain is None:
                if held or not queue.rearm(max(1, self._depth // 2)):
                    break
            elif chain.writable_len:
                held.append(chain)
            else:
                queue.add_used(chain)
        return bool(held)

    def _deliver(self) -> None:
        """Copy `_pending` into the guest's buffers."""
        pending = self._pending
        while pending and self._gather():
            chain = self._held.popleft()
            del pending[: chain.write(pending)]
            self._receive.add_used(chain)
        self._receive.flush()

    def _source_ready(self) -> None:
        watch = self._source_watch
        if watch is None or not watch.active:
            return
        if not self.guest_open or not self._receive.active or not self._gather():
            watch.off()
            return
        if self._pending:
            self._deliver()  # it came first
            if self._pending or not self._gather():
                watch.off()
                return
        try:
            if self._transform is None:
                count = self._read_into_guest()
            else:
                data = os.read(self._source, READ_SIZE)
                count = len(data)
                shown = self._transform(data)
                self._pending += shown
                self._total += len(shown)
                self._deliver()
                if self._pending:
                    watch.off()  # `refill` switches it on again
        except BlockingIOError:
            return
        except OSError:
            count = 0  # EIO of a hung-up terminal, ECONNRESET: an end as well
        if count == 0:
            self._drop_source()
            if self._on_source_end is not None:
                self._on_source_end(self._total)
            self._end()

    def _read_into_guest(self) -> int:
        held = self._held
        views = [view for chain in held for view in chain.writable]
        total = left = os.readv(self._source, views[:1024])
        self._total += total
        while left:
            chain = held.popleft()
            size = min(left, chain.writable_len)
            chain.fill(size)
            left -= size
            self._receive.add_used(chain)
        self._receive.flush()
        return total

    def _end(self) -> None:
        if self.keep_open:
            return
        self._ended = True
        if not self._pending:
            self._close_host()

    def _close_host(self) -> None:
        """Tell the guest. It finds what it was sent in the used ring already, so it reads that first."""
        if self.host_open:
            self.host_open = False
            self._host.port_open(self.number, False)

    def _drop_source(self) -> None:
        if self._source_watch is not None:
            self._source_watch.off()
            self._source_watch = None
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    # Guest to host.

    def _put(self, chain: Chain, length: int) -> bool:
        """Write what is left of `chain`, which had `length` bytes. False when it waits, in `_blocked`."""
        if self._sink is not None:
            self._sink(chain.read(chain.readable_len))
        while chain.readable_len and self._sink_fd >= 0:
            try:
                count = os.writev(self._sink_fd, chain.readable)
                if self._tap is not None:
                    self._tap(b"".join(chain.readable)[:count])
                chain.skip(count)
            except BlockingIOError:
                self._blocked = chain
                self._blocked_len = length
                if self._sink_watch is not None:
                    self._sink_watch.on()
                return False
            except OSError as error:
                self._lose_sink(error)
        if self._on_sent is not None:
            self._on_sent(length)
        return True

    def _sink_ready(self) -> None:
        chain = self._blocked
        if chain is None or not self._transmit.active:
            if self._sink_watch is not None:
                self._sink_watch.off()
            return
        self._blocked = None
        if not self._put(chain, self._blocked_len):
            return
        if self._sink_watch is not None:
            self._sink_watch.off()
        self._transmit.add_used(chain)
        self.transmit()
        if self._closing and self._blocked is None:
            self._closing = False
            self._tell(False)

    def _lose_sink(self, error: OSError) -> None:
        self._drop_sink()
        if self._on_sink_lost is not None:
            self._on_sink_lost(error)
        if not self.keep_open:
            self._close_host()

    def _drop_sink(self) -> None:
        if self._sink_watch is not None:
            self._sink_watch.off()
            self._sink_watch = None
        if self._sink_fd >= 0:
            if self._sink_restore:
                os.set_blocking(self._sink_fd, True)
            os.close(self._sink_fd)
            self._sink_fd = -1

    def _tell(self, is_open: bool) -> None:
        if self._on_guest_open is not None:
            self._on_guest_open(is_open)


def _open_sink(fd: int) -> tuple[int, bool]:
    """A descriptor for writing to what `fd` is, which does not block; whether its flag must be put back.

    O_NONBLOCK belongs to the open file, which a terminal's processes share: pipes and terminals are opened
    anew.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return os.dup(fd), False  # never blocks, and a new open file would have a position of its own
    fresh = stat.S_ISFIFO(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev != _PTMX)
    if fresh:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags), False
        except OSError:
            pass
    own = os.dup(fd)
    blocking = os.get_blocking(own)
    os.set_blocking(own, False)
    return own, blocking
