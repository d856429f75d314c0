# SPDX-License-Identifier: GPL-2.0-only
"""A file as memory of the guest (virtio 1.2 §5.19): it reads and writes it with its own instructions, and asks for a
flush where something has to be on the disk.

A flush may take seconds and everything else waits on the io thread, so a thread of its own does it, one at a time.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import CannotRun, GuestFault
from unikvm.sys.diskfile import DiskFile
from unikvm.sys.mapping import HUGE_PAGE, FileMapping
from unikvm.sys.thread import Thread
from unikvm.uapi.virtio import VIRTIO_ID_PMEM
from unikvm.uapi.virtio_pmem import VIRTIO_PMEM_REQ_TYPE_FLUSH, virtio_pmem_config
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Chain, Queue

ALIGN = HUGE_PAGE  # of address and size: what Linux can make pages for
_WORD = Struct("<I")  # struct virtio_pmem_req: type; struct virtio_pmem_resp: ret
_FAILED = 1


class Pmem(VirtioDevice):
    """virtio-pmem on the image `path`.

    `mode` rw: what the guest writes is written to the file; ro: it cannot write; cow: it can, and that is forgotten.
    """

    name = "pmem"
    device_id = VIRTIO_ID_PMEM
    queue_sizes = (64,)

    def __init__(self, path: str, *, mode: str = "rw") -> None:
        """Opens and maps `path`; CannotRun when it cannot be used."""
        super().__init__()
        self.readonly = mode == "ro"
        self._shared = mode == "rw"
        self._file = DiskFile(path, readonly=not self._shared)
        self.size = self._file.size
        try:
            if self.size % ALIGN:
                raise CannotRun(f"{path} is no whole multiple of 2 MiB", hint="truncate -s %2M rounds it up")
            # `ro` is KVM's business; devices that the guest points there find memory that takes a write and forgets it.
            self.mapping = FileMapping(self._file.fd, self.size, shared=self._shared)
        except OSError as error:
            self._file.close()
            raise CannotRun(f"cannot map {path}: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise
        self._flushing: list[Chain] = []  # not begun
        self._under_way: list[Chain] = []
        self._worker: Thread | None = None
        self.sync = self._file.flush

    def place(self, gpa: int) -> None:
        """Where the guest finds it; before it is connected."""
        self.config = bytes(virtio_pmem_config(start=gpa, size=self.size))

    def close(self) -> None:
        super().close()
        if self._worker is not None:
            self._worker.join()
        self.discard()

    def discard(self) -> None:
        self.mapping.close()
        self._file.close()

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            request = chain.read(_WORD.size)
            if len(request) < _WORD.size or chain.writable_len < _WORD.size:
                raise GuestFault(f"a request of {len(request)} bytes, and {chain.writable_len} for the answer")
            if _WORD.unpack(request)[0] != VIRTIO_PMEM_REQ_TYPE_FLUSH:
                self._answer(queue, [chain], _FAILED)
            elif not self._shared:
                self._answer(queue, [chain], 0)  # there is nothing that would have to last
            else:
                self._flushing.append(chain)
        self._begin()

    def _begin(self) -> None:
        """Let one flush serve all that have been asked for: each of them was asked before it began."""
        if self._flushing and self._worker is None:
            chains = self._flushing
            self._worker = Thread(lambda: self._flush(chains), "flush")
            self._flushing = []
            self._under_way = chains
            self._worker.start()

    def _flush(self, chains: list[Chain]) -> None:
        """On the worker's thread."""
        try:
            self.sync()
            result = 0
        except OSError:
            result = _FAILED
        self.loop.call_soon(lambda: self.serve(lambda: self._done(chains, result)))

    def _done(self, chains: list[Chain], result: int) -> None:
        self._worker = None
        queue = self.queues[0]
        if chains is self._under_way and queue.active:
            self._under_way = []
            self._answer(queue, chains, result)
            queue.flush()
        self._begin()

    def _answer(self, queue: Queue, chains: list[Chain], result: int) -> None:
        for chain in chains:
            chain.write(_WORD.pack(result))
            queue.add_used(chain)

    def release(self, queue: Queue) -> None:
        """What is being flushed is not answered any more; a driver that comes back asks again."""
        self._flushing = []
        self._under_way = []

    def held(self, queue: Queue) -> int:
        return len(self._under_way) + len(self._flushing)
