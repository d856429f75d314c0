# SPDX-License-Identifier: GPL-2.0-only
"""A file as memory of the guest (virtio 1.2 §5.19): it reads and writes it with its own instructions, and asks for a
flush where something has to be on the disk.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import CannotRun, GuestFault
from unikvm.sys.diskfile import DiskFile
from unikvm.sys.mapping import HUGE_PAGE, FileMapping
from unikvm.uapi.virtio import VIRTIO_ID_PMEM
from unikvm.uapi.virtio_pmem import VIRTIO_PMEM_REQ_TYPE_FLUSH, virtio_pmem_config
from unikvm.virtio.blocking import Blocking
from unikvm.virtio.queue import Chain, Queue

ALIGN = HUGE_PAGE  # of address and size: what Linux can make pages for
_WORD = Struct("<I")  # struct virtio_pmem_req: type; struct virtio_pmem_resp: ret
_FAILED = 1


class Pmem(Blocking):
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
        self.sync = self._file.flush

    def place(self, gpa: int) -> None:
        """Where the guest finds it; before it is connected."""
        self.config = bytes(virtio_pmem_config(start=gpa, size=self.size))

    def let_go(self) -> None:
        self.mapping.close()
        self._file.close()

    def process(self, queue: Queue) -> None:
        flushing: list[Chain] = []
        for chain in queue.available():
            request = chain.read(_WORD.size)
            if len(request) < _WORD.size or chain.writable_len < _WORD.size:
                raise GuestFault(f"a request of {len(request)} bytes, and {chain.writable_len} for the answer")
            if _WORD.unpack(request)[0] != VIRTIO_PMEM_REQ_TYPE_FLUSH:
                self._answer(queue, [chain], _FAILED)
            elif not self._shared:
                self._answer(queue, [chain], 0)  # there is nothing that would have to last
            else:
                flushing.append(chain)
        if flushing:  # one serves all: each of them was asked for before it began
            self._answer(queue, flushing, self._flush())

    def _flush(self) -> int:
        try:
            self.sync()
        except OSError:
            return _FAILED
        return 0

    def _answer(self, queue: Queue, chains: list[Chain], result: int) -> None:
        for chain in chains:
            chain.write(_WORD.pack(result))
            queue.add_used(chain)
