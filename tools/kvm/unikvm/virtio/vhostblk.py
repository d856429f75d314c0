# SPDX-License-Identifier: GPL-2.0-only
"""A block device (virtio 1.2 §5.2) that a vhost-user back end serves: images of other formats than raw.

A back end that ends is started again where what it had answered is in the image (`Backend.again`), and does once more
what it had taken and not given back: until the driver has the answer, a block's content is the old or the new one. Else
some of what was answered may be lost with it, as with a disk whose power fails; the driver must not go on as if it were
not, so every request is an error from then on.

A disk grows when its back end says so. It never gets smaller: a driver would only learn it by errors.
"""

from __future__ import annotations

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_ID_BLOCK,
)
from unikvm.vhost.channel import BackendError
from unikvm.virtio.growing import Growing
from unikvm.virtio.queue import Chain
from unikvm.virtio.vhostuser import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.vhost.backend import Backend
    from unikvm.vhost.frontend import FrontEnd

QUEUE_SIZE = 256
CONFIG_SIZE = 60  # struct virtio_blk_config up to and with write zeroes


class VhostBlk(VhostUser, Growing):
    """virtio-blk, served by `backend`."""

    name = "blk"
    device_id = VIRTIO_ID_BLOCK
    config = bytes(CONFIG_SIZE)  # until the back end gives it
    listens = True
    known_features = (
        1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_MQ
        | 1 << VIRTIO_BLK_F_RO
        | 1 << VIRTIO_BLK_F_DISCARD
        | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    )

    def __init__(
        self,
        backend: Backend,
        *,
        readonly: bool = False,
        path: str = "",
        queues: int = 1,
        grow: Callable[[int], object] | None = None,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """`path`: of the image. `grow` has the back end make it so many bytes; CannotRun where it does not."""
        super().__init__(backend, say=say)
        self.queue_sizes = (QUEUE_SIZE,) * queues
        self.path = path
        self.readonly = readonly
        self._grow = grow

    def refuse(self, chain: Chain) -> None:
        chain.take_last()[0] = VIRTIO_BLK_S_IOERR

    def met(self, front: FrontEnd) -> None:
        if self.readonly and not front.features >> VIRTIO_BLK_F_RO & 1:
            raise BackendError(f"{self.backend.name} would write to a read-only disk")
        self._check(front.get_config(CONFIG_SIZE))

    def _check(self, config: bytes) -> int:
        size = self.size_in(config)
        if size < self.size:
            raise BackendError(f"{self.backend.name} has a smaller disk now: {size} bytes instead of {self.size}")
        return size

    def reconfigured(self, config: bytes) -> None:
        size = self._check(config)
        if any(self.config):
            self.has_grown(size)  # nothing else may change
        else:
            self.config = config

    def enlarge(self, size: int) -> None:
        if not size:
            raise CannotRun(f"disk {self.path} does not grow by itself", hint=f"disk={self.path},size=SIZE")
        if self._grow is None:
            raise CannotRun(f"disk {self.path}: {self.backend.name} cannot make it larger")
        self._grow(size)
        # It is by now. QEMU's says so by itself since 8.1.
        with self.lock:
            self.has_grown(size)
