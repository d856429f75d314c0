# SPDX-License-Identifier: GPL-2.0-only
"""A directory for the guest by 9P (virtio 1.2 §5.6 reserves the number; Linux: net/9p/trans_virtio.c): requests go to a
server on a stream socket, and its answers, in the same order, into the guest's buffers.

Without its server the device answers with ENOTCONN, as virtio-fs does.
"""

from __future__ import annotations

import errno
from struct import Struct

from unikvm.errors import CannotRun, GuestFault, UnikvmError
from unikvm.lean import deque
from unikvm.p9.messages import HEADER, MAX_MESSAGE, refusal
from unikvm.uapi.virtio import VIRTIO_9P_MOUNT_TAG, VIRTIO_ID_9P
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.sys.unixsocket import Socket
    from unikvm.vhost.backend import Backend
    from unikvm.virtio.device import Transport
    from unikvm.virtio.state import VirtioState

MAX_TAG = 36  # bytes, as of virtio-fs
_TAG_LENGTH = Struct("<H")  # struct virtio_9p_config: tag_len, tag
_BUFFER = 2 * MAX_MESSAGE


class P9(VirtioDevice):
    """virtio-9p: the directory that `backend` serves, under the name `tag`."""

    name = "9p"
    device_id = VIRTIO_ID_9P
    queue_sizes = (128,)
    features = 1 << VIRTIO_9P_MOUNT_TAG

    def __init__(self, tag: str, backend: Backend, *, say: Callable[[str], object] = lambda _line: None) -> None:
        super().__init__()
        name = tag.encode()
        if not 0 < len(name) <= MAX_TAG:
            raise CannotRun(f"a file system's tag has 1 to {MAX_TAG} bytes, not {tag!r}")
        self.config = _TAG_LENGTH.pack(len(name)) + name
        self.backend = backend
        self._say = say
        self._sock: Socket | None = None
        self._sending: deque[tuple[Chain, int]] = deque()  # with their tags
        self._part_sent = False  # of the first of them
        self._rest = b""  # of a message that went out in part and whose chain is gone
        self._waiting: deque[tuple[Chain, int]] = deque()  # for answers, which come in this order
        self._unwanted = 0  # answers that come before those: to a driver that was reset
        self._buffer = bytearray(_BUFFER)
        self._received = 0
        self._writing = False

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        self._sock = self.backend.open()
        self._sock.setblocking(False)
        self._listen(False)

    def close(self) -> None:
        with self.lock:
            super().close()
            self._part()
        self.discard()

    def discard(self) -> None:
        self.backend.close()

    def save(self) -> VirtioState:
        """Not possible: what the guest knows of its files is in the file server's memory as well."""
        raise UnikvmError("a machine with a shared directory cannot be kept", hint="run it without --root and --rwdir")

    def release(self, queue: Queue) -> None:
        if self._sending and self._part_sent:
            chain, _ = self._sending[0]
            self._rest += b"".join(chain.readable)
            self._unwanted += 1
        self._part_sent = False
        self._sending.clear()
        self._unwanted += len(self._waiting)
        self._waiting.clear()

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            head = b"".join(bytes(view[: HEADER.size]) for view in chain.readable[:2])[: HEADER.size]
            if len(head) < HEADER.size or chain.readable_len > MAX_MESSAGE:
                raise GuestFault(f"a request of {chain.readable_len} bytes")
            size, _, tag = HEADER.unpack(head)
            if size != chain.readable_len:
                raise GuestFault(f"a request of {chain.readable_len} bytes that says {size}")
            if self._sock is None:
                self._refuse(chain, tag)
            else:
                self._sending.append((chain, tag))
        self._send()

    # The server

    def _listen(self, writing: bool) -> None:
        """Hear of answers, and of room where there was none."""
        if self._sock is not None:
            self.loop.remove(self._sock.fileno())
            self.loop.add(self._sock.fileno(), self._readable, self._writable if writing else None)
            self._writing = writing

    def _writable(self) -> None:
        self.serve(self._send)

    def _send(self) -> None:
        sock = self._sock
        try:
            while sock is not None and self._rest:
                self._rest = self._rest[sock.send(self._rest) :]
            while sock is not None and self._sending:
                chain, tag = self._sending[0]
                chain.skip(sock.sendmsg(chain.readable))
                self._part_sent = bool(chain.readable_len)
                if not self._part_sent:
                    self._sending.popleft()
                    self._waiting.append((chain, tag))
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        blocked = bool(self._rest or self._sending)
        if blocked != self._writing:
            self._listen(blocked)

    def _readable(self) -> None:
        self.serve(self._receive)

    def _receive(self) -> None:
        if self._sock is None:
            return
        try:
            count = self._sock.recv_into(memoryview(self._buffer)[self._received :])
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not count:
            self._lost("it closed the connection")
            return
        self._received += count
        start = 0
        try:
            while self._received - start >= HEADER.size:
                size, _, tag = HEADER.unpack_from(self._buffer, start)
                if not HEADER.size <= size <= MAX_MESSAGE:
                    self._lost(f"it sends a message of {size} bytes")
                    return
                if self._received - start < size:
                    break
                start += size
                if not self._answer(tag, memoryview(self._buffer)[start - size : start]):
                    return
        finally:  # a buffer of the guest's may be too small
            self._buffer[: self._received - start] = self._buffer[start : self._received]
            self._received -= start
            self.queues[0].flush()

    def _answer(self, tag: int, message: memoryview) -> bool:
        """Give an answer to whom it is for; False where the server is lost by it."""
        if self._unwanted:
            self._unwanted -= 1
            return True
        if not self._waiting or self._waiting[0][1] != tag:
            self._lost("it answers what nobody asked")
            return False
        chain, _ = self._waiting.popleft()
        if chain.writable_len < len(message):
            raise GuestFault(f"a buffer of {chain.writable_len} bytes for an answer of {len(message)}")
        chain.write(message)
        self.queues[0].add_used(chain)
        return True

    def _part(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self.loop.remove(sock.fileno())
            sock.close()

    def _lost(self, why: str) -> None:
        self._part()
        why = self.backend.why() or why
        self.backend.stop()
        self._say(f"{self.backend.name} is lost: {why}")
        for chain, tag in (*self._waiting, *self._sending):
            self._refuse(chain, tag)
        self._waiting.clear()
        self._sending.clear()
        self._rest = b""
        self._unwanted = 0
        if self.queues[0].active:
            self.queues[0].flush()

    def _refuse(self, chain: Chain, tag: int) -> None:
        chain.write(refusal(tag, errno.ENOTCONN))
        self.queues[0].add_used(chain)
