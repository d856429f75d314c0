# SPDX-License-Identifier: GPL-2.0-only
"""virtio-mem (virtio 1.2 §5.15): memory that is plugged in and pulled out, block by block.

The guest has a region of addresses, the host a wish of how much of it shall be memory, and the guest's driver asks for
blocks until that is so. KVM maps the whole region from the start: a block is plugged by saying so, and unplugged by
giving its pages back to the host, after which it reads as zeroes. A driver that touches blocks it did not plug, which
the specification forbids, takes memory of its own host for zeroes, and that is all.
"""

from __future__ import annotations

from unikvm.errors import GuestFault, UnikvmError
from unikvm.sys.mapping import HUGE_PAGE
from unikvm.uapi.virtio import VIRTIO_ID_MEM
from unikvm.uapi.virtio_mem import (
    VIRTIO_MEM_REQ_PLUG,
    VIRTIO_MEM_REQ_STATE,
    VIRTIO_MEM_REQ_UNPLUG,
    VIRTIO_MEM_REQ_UNPLUG_ALL,
    VIRTIO_MEM_RESP_ACK,
    VIRTIO_MEM_RESP_BUSY,
    VIRTIO_MEM_RESP_ERROR,
    VIRTIO_MEM_RESP_NACK,
    VIRTIO_MEM_STATE_MIXED,
    VIRTIO_MEM_STATE_PLUGGED,
    VIRTIO_MEM_STATE_UNPLUGGED,
    virtio_mem_config,
    virtio_mem_req,
    virtio_mem_resp,
)
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.virtio.state import DeviceState, MemState

BLOCK = HUGE_PAGE  # bytes
_REQUEST_SIZE = 24  # struct virtio_mem_req
_RESPONSE_SIZE = 10  # struct virtio_mem_resp


class Mem(VirtioDevice):
    """virtio-mem for the region of `size` bytes at guest address `start`, both multiples of BLOCK."""

    name = "mem"
    device_id = VIRTIO_ID_MEM
    queue_sizes = (64,)

    def __init__(self, start: int, size: int) -> None:
        super().__init__()
        self._plugged = bytearray(size // BLOCK)  # a byte a block, 0 or 1
        self._state = virtio_mem_config(
            block_size=BLOCK, addr=start, region_size=size, usable_region_size=size, plugged_size=0, requested_size=0
        )

    @property
    def config(self) -> bytes:  # type: ignore[override]
        return bytes(self._state)

    # For the host, from any thread.

    @property
    def requested(self) -> int:
        """Bytes that the guest shall have plugged."""
        return self._state.requested_size

    @requested.setter
    def requested(self, size: int) -> None:
        with self.lock:
            self._state.requested_size = size
            self.config_changed()

    def changed(self) -> None:
        """Blocks came or went; on the io thread, without the lock. For who made the device to replace."""

    @property
    def plugged(self) -> int:
        """Bytes that the guest has plugged."""
        return self._state.plugged_size

    # The driver's side, under the lock.

    def process(self, queue: Queue) -> None:
        for chain in queue.available():
            data = chain.read(_REQUEST_SIZE)
            if len(data) < _REQUEST_SIZE or chain.writable_len < _RESPONSE_SIZE:
                raise GuestFault(f"a request of {len(data)} bytes, and {chain.writable_len} for the answer")
            response = virtio_mem_resp()
            response.type = self._execute(virtio_mem_req.from_buffer_copy(data), response)
            chain.write(bytes(response))
            queue.add_used(chain)

    def _execute(self, request: virtio_mem_req, response: virtio_mem_resp) -> int:
        """Carry out one request (§5.15.6.2 ff.); the type of the answer."""
        kind = request.type
        if kind == VIRTIO_MEM_REQ_UNPLUG_ALL:
            return self._unplug(0, len(self._plugged))
        first, count = self._blocks(request.u.plug.addr, request.u.plug.nb_blocks)
        if not count:
            return VIRTIO_MEM_RESP_ERROR
        plugged = sum(self._plugged[first : first + count])
        if kind == VIRTIO_MEM_REQ_PLUG and not plugged:
            return self._plug(first, count)
        if kind == VIRTIO_MEM_REQ_UNPLUG and plugged == count:
            return self._unplug(first, count)
        if kind == VIRTIO_MEM_REQ_STATE:
            some = VIRTIO_MEM_STATE_MIXED if plugged < count else VIRTIO_MEM_STATE_PLUGGED
            response.u.state.state = some if plugged else VIRTIO_MEM_STATE_UNPLUGGED
            return VIRTIO_MEM_RESP_ACK
        return VIRTIO_MEM_RESP_ERROR

    def _blocks(self, address: int, count: int) -> tuple[int, int]:
        """The first block and the number of those that a request names; none where they are not in the region."""
        offset = address - self._state.addr
        first = offset // BLOCK
        if offset % BLOCK or offset < 0 or first + count > len(self._plugged):
            return 0, 0
        return first, count

    def _plug(self, first: int, count: int) -> int:
        state = self._state
        if state.plugged_size + count * BLOCK > state.requested_size:
            return VIRTIO_MEM_RESP_NACK
        if not self.memory.take(state.addr + first * BLOCK, count * BLOCK):
            return VIRTIO_MEM_RESP_BUSY  # the host's huge pages are used up: later, perhaps
        self._set(first, count, 1)
        return VIRTIO_MEM_RESP_ACK

    def _unplug(self, first: int, count: int) -> int:
        try:
            # All of it, plugged or not: what a driver put where it should not is gone as well.
            self.memory.give_back(self._state.addr + first * BLOCK, count * BLOCK)
        except OSError:
            return VIRTIO_MEM_RESP_BUSY
        self._set(first, count, 0)
        return VIRTIO_MEM_RESP_ACK

    def _set(self, first: int, count: int, value: int) -> None:
        self._plugged[first : first + count] = bytes((value,)) * count
        self._state.plugged_size = sum(self._plugged) * BLOCK
        self.loop.call_soon(self.changed)

    def save_type(self) -> MemState:
        """A reset of the device changes nothing of it (§5.15.5): what is plugged holds the guest's data."""
        from unikvm.virtio.state import MemState

        return MemState(requested=self._state.requested_size, plugged=bytes(self._plugged))

    def restore_type(self, state: DeviceState) -> None:
        from unikvm.virtio.state import MemState

        if not isinstance(state, MemState) or len(state.plugged) != len(self._plugged):
            raise UnikvmError(f"{self.name}: the snapshot has another region of memory")
        self._state.requested_size = state.requested
        for block, value in enumerate(state.plugged):
            if value and not self.memory.take(self._state.addr + block * BLOCK, BLOCK):
                raise UnikvmError(f"{self.name}: this host has no memory for what was plugged in")
            self._plugged[block] = value
        self._state.plugged_size = sum(self._plugged) * BLOCK
