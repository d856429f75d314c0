# SPDX-License-Identifier: GPL-2.0-only
"""Host entropy for the guest (virtio 1.2 §5.4)."""

from __future__ import annotations

import os

from unikvm.uapi.virtio import VIRTIO_ID_RNG
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILL = 64 << 10  # bytes a request: a driver asks for a few dozen, a hostile one for gigabytes


class Rng(VirtioDevice):
    """virtio-rng. `source` gives as many random bytes as it is asked for."""

    name = "rng"
    device_id = VIRTIO_ID_RNG
    queue_sizes = (64,)

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self._source = source

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            chain.write(self._source(min(chain.writable_len, MAX_FILL)))
            queue.add_used(chain)
