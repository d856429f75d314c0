# SPDX-License-Identifier: GPL-2.0-only
"""The balloon (virtio 1.2 §5.5): memory that the guest lends to the host, what it says of the rest, and pages that it
has no use for at the moment.

What the guest hands over is given back to the host page by page; when the guest takes a page again it finds zeroes.
Whether it may is its own business: the device gives back nothing that is not whole pages of this guest's RAM.
"""

from __future__ import annotations

from array import array
from struct import Struct

from unikvm.errors import GuestFault, UnikvmError
from unikvm.memory import PAGE
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_ID_BALLOON
from unikvm.uapi.virtio_balloon import (
    VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
    VIRTIO_BALLOON_F_PAGE_POISON,
    VIRTIO_BALLOON_F_REPORTING,
    VIRTIO_BALLOON_F_STATS_VQ,
    VIRTIO_BALLOON_PFN_SHIFT,
    VIRTIO_BALLOON_S_AVAIL,
    VIRTIO_BALLOON_S_CACHES,
    VIRTIO_BALLOON_S_HTLB_PGALLOC,
    VIRTIO_BALLOON_S_HTLB_PGFAIL,
    VIRTIO_BALLOON_S_MAJFLT,
    VIRTIO_BALLOON_S_MEMFREE,
    VIRTIO_BALLOON_S_MEMTOT,
    VIRTIO_BALLOON_S_MINFLT,
    VIRTIO_BALLOON_S_SWAP_IN,
    VIRTIO_BALLOON_S_SWAP_OUT,
    virtio_balloon_config,
)
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Chain, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unikvm.virtio.state import BalloonState, DeviceState

    Statistics = dict[str, int]

QUEUE_SIZE = 128
# §5.5.2 counts the queue of a feature that is not on offer; drivers leave it out, that of Linux 6.1 among them. So
# queue 3, which is free page hinting's, takes reports as well.
INFLATE, DEFLATE, STATISTICS, HINTING, REPORTING = range(5)
MAX_PFNS = 4096  # of one request: Linux sends 256
MAX_STATISTICS = 64

# Bytes, but for those that count: `faults` and `pages`.
NAMES = {
    VIRTIO_BALLOON_S_SWAP_IN: "swap-in",
    VIRTIO_BALLOON_S_SWAP_OUT: "swap-out",
    VIRTIO_BALLOON_S_MAJFLT: "major-faults",
    VIRTIO_BALLOON_S_MINFLT: "minor-faults",
    VIRTIO_BALLOON_S_MEMFREE: "free",
    VIRTIO_BALLOON_S_MEMTOT: "total",
    VIRTIO_BALLOON_S_AVAIL: "available",
    VIRTIO_BALLOON_S_CACHES: "caches",
    VIRTIO_BALLOON_S_HTLB_PGALLOC: "huge-pages-allocated",
    VIRTIO_BALLOON_S_HTLB_PGFAIL: "huge-pages-failed",
}
_STATISTIC = Struct("<HQ")  # struct virtio_balloon_stat, packed: tag, val


class Balloon(VirtioDevice):
    """virtio-balloon."""

    name = "balloon"
    device_id = VIRTIO_ID_BALLOON
    queue_sizes = (QUEUE_SIZE,) * 5
    features = (
        1 << VIRTIO_BALLOON_F_STATS_VQ
        | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
        | 1 << VIRTIO_BALLOON_F_PAGE_POISON
        | 1 << VIRTIO_BALLOON_F_REPORTING
    )

    def __init__(self) -> None:
        super().__init__()
        self._state = virtio_balloon_config()
        self._statistics: Chain | None = None  # the driver's buffer, which it fills anew whenever it gets it back
        self._waiting: list[Callable[[Statistics], object]] = []
        self.reported = 0  # bytes, since the start
        self.statistics: Statistics = {}  # as last heard

    @property
    def config(self) -> bytes:  # type: ignore[override]
        return bytes(self._state)

    # For the host, from any thread.

    @property
    def target(self) -> int:
        """Bytes that the guest is asked to hand over."""
        return self._state.num_pages * PAGE

    @target.setter
    def target(self, size: int) -> None:
        with self.lock:
            self._state.num_pages = size >> VIRTIO_BALLOON_PFN_SHIFT
            self.config_changed()

    @property
    def actual(self) -> int:
        """Bytes that the guest says it has handed over."""
        return self._state.actual * PAGE

    def ask(self, answer: Callable[[Statistics], object]) -> None:
        """Have the guest look at its memory, and call `answer` with what it says, by `NAMES`, on the io thread.

        UnikvmError when its driver gives no statistics, or not yet.
        """
        with self.lock:
            if not self.negotiated(VIRTIO_BALLOON_F_STATS_VQ) or not self.status & VIRTIO_CONFIG_S_DRIVER_OK:
                raise UnikvmError(
                    "the guest has no driver for its balloon", hint="Linux: virtio_balloon; not yet booted?"
                )
            self._waiting.append(answer)
            self._return_statistics()

    # The driver's side, under the lock.

    def process(self, queue: Queue) -> None:
        index = queue.index
        if index == STATISTICS and self.negotiated(VIRTIO_BALLOON_F_STATS_VQ):
            self._take_statistics(queue)
        elif index == INFLATE:
            for chain in queue.available():
                for gpa, length in _ranges(chain):
                    self.memory.give_back(gpa, length)
                queue.add_used(chain)
        elif index == DEFLATE:
            for chain in queue.available():
                queue.add_used(chain)  # the pages come when they are touched
        else:
            self._take_reports(queue)

    def _take_reports(self, queue: Queue) -> None:
        """§5.5.6.7: the buffers themselves are what is free. The driver takes them again when it has them back."""
        # What it expects to find in them is zeroes, or else what it poisons free pages with: those stay.
        keep = self.negotiated(VIRTIO_BALLOON_F_PAGE_POISON) and self._state.poison_val
        if not self.negotiated(VIRTIO_BALLOON_F_REPORTING):
            raise GuestFault(f"queue {queue.index}: used without its feature")
        for chain in queue.available():
            for view in () if keep else chain.writable:
                self.memory.give_back_view(view)
                self.reported += len(view)
            queue.add_used(chain)

    def _take_statistics(self, queue: Queue) -> None:
        for chain in queue.available():
            if self._statistics is not None:
                queue.add_used(self._statistics)
            self._statistics = chain
            data = chain.read(min(chain.readable_len, MAX_STATISTICS * _STATISTIC.size))
            whole = len(data) // _STATISTIC.size * _STATISTIC.size
            said = _STATISTIC.iter_unpack(data[:whole])
            self.statistics = {NAMES[tag]: value for tag, value in said if tag in NAMES}
            waiting, self._waiting = self._waiting, []
            for answer in waiting:
                answer(self.statistics)

    def _return_statistics(self) -> None:
        """The driver looks at its memory when it gets the buffer. Where it has it already an answer is on its way."""
        chain, self._statistics = self._statistics, None
        queue = self.queues[STATISTICS]
        if chain is not None and queue.active:
            queue.add_used(chain)
            queue.flush()

    def write_config(self, offset: int, size: int, value: int) -> None:
        """`actual` and `poison_val` are the driver's (§5.5.4)."""
        data = bytearray(bytes(self._state))
        data[offset : offset + size] = value.to_bytes(size, "little")
        if len(data) == len(self.config):
            new = virtio_balloon_config.from_buffer_copy(data)
            self._state.actual = new.actual
            self._state.poison_val = new.poison_val

    def release(self, queue: Queue) -> None:
        if queue.index == STATISTICS:
            self._statistics = None

    def stopped(self) -> None:
        """A driver that comes back begins with an empty balloon (§5.5.5). Who waits for the old one is not answered."""
        self._waiting.clear()
        self._state.actual = self._state.poison_val = 0

    def held(self, queue: Queue) -> int:
        return int(queue.index == STATISTICS and self._statistics is not None)

    def save_type(self) -> BalloonState:
        from unikvm.virtio.state import BalloonState

        state = self._state
        return BalloonState(target=state.num_pages, actual=state.actual, poison=state.poison_val)

    def restore_type(self, state: DeviceState) -> None:
        from unikvm.virtio.state import BalloonState

        if not isinstance(state, BalloonState):
            raise UnikvmError(f"{self.name}: the snapshot has another device's state")
        self._state.num_pages = state.target
        self._state.actual = state.actual
        self._state.poison_val = state.poison


def _ranges(chain: Chain) -> Iterator[tuple[int, int]]:
    """The (address, bytes) of the pages whose numbers a request has, neighbours together."""
    data = chain.read(MAX_PFNS * 4)
    if chain.readable_len or len(data) % 4:
        raise GuestFault(f"{chain.readable_len + len(data)} bytes are no list of pages")
    pages = sorted(array("I", data))
    start = end = -1
    for page in pages:
        if page == end:
            end += 1
        elif page != end - 1:
            if end > start:
                yield start * PAGE, (end - start) * PAGE
            start, end = page, page + 1
    if end > start:
        yield start * PAGE, (end - start) * PAGE
