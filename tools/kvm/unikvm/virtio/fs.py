# SPDX-License-Identifier: GPL-2.0-only
"""A directory for the guest (virtio 1.2 §5.11): FUSE requests, which a virtiofsd answers over vhost-user.

A file server cannot be replaced when it ends: what it knew of open files and inodes ended with it. The driver has no
way to be told, and waits for answers for ever. So the device answers itself from then on: each request that is under
way, and each that comes, with ENOTCONN. The guest's processes get errors, and go on.
"""

from __future__ import annotations

import errno
from struct import Struct

from unikvm.errors import CannotRun, GuestFault, UnikvmError
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_ID_FS
from unikvm.virtio.queue import Chain, Queue
from unikvm.virtio.vhostuser import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.vhost.backend import Backend
    from unikvm.virtio.state import VirtioState

HIPRIO = 0  # the queue of FORGET and INTERRUPT requests, which have no answer (§5.11.2)
MAX_TAG = 36  # bytes
_CONFIG = Struct("<36sI")  # struct virtio_fs_config: tag, num_request_queues
_IN = Struct("<IIQ")  # the head of struct fuse_in_header: len, opcode, unique
_OUT = Struct("<IiQ")  # struct fuse_out_header: len, error, unique


class Fs(VhostUser):
    """virtio-fs: the directory that `backend` serves, under the name `tag`."""

    name = "fs"
    device_id = VIRTIO_ID_FS
    queue_sizes = (128, 1024)

    def __init__(self, tag: str, backend: Backend, *, say: Callable[[str], object] = lambda _line: None) -> None:
        super().__init__(backend, say=say)
        name = tag.encode()
        if not 0 < len(name) <= MAX_TAG:
            raise CannotRun(f"a file system's tag has 1 to {MAX_TAG} bytes, not {tag!r}")
        self.config = _CONFIG.pack(name, 1)

    def save(self) -> VirtioState:
        """Not possible: what the guest knows of its files is in the file server's memory as well."""
        raise UnikvmError("a machine with a shared directory cannot be kept", hint="run it without --root and --rwdir")

    def orphaned(self, why: str) -> None:
        for queue, doorbell in zip(self.queues, self.doorbells, strict=True):
            self.loop.add(doorbell.fd, self._doorbell_callback(queue, doorbell))
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
            self.serve(self._answer_all)

    def process(self, queue: Queue) -> None:
        """Answer what comes after the file server's end."""
        for chain in queue.available():
            _refuse(chain)
            queue.add_used(chain)

    def _answer_all(self) -> None:
        for queue in self.queues:
            if queue.active:
                for chain in _under_way(queue):
                    _refuse(chain)
                    queue.add_used(chain)
                queue.flush()
                queue.kick()


def _refuse(chain: Chain) -> None:
    """Put ENOTCONN into a request's answer, where it may have one."""
    head = chain.read(_IN.size)
    if len(head) == _IN.size and chain.writable_len >= _OUT.size:
        _, _, unique = _IN.unpack(head)
        chain.write(_OUT.pack(_OUT.size, -errno.ENOTCONN, unique))


def _answered(chain: Chain) -> bool:
    """Whether a chain's answer is there: the driver numbers its requests, and the answer repeats the number."""
    head = b"".join(view[: _IN.size].tobytes() for view in chain.readable)[: _IN.size]
    answer = b"".join(view[: _OUT.size].tobytes() for view in chain.writable)[: _OUT.size]
    if len(head) < _IN.size or len(answer) < _OUT.size:
        return False
    return bool(_IN.unpack(head)[2] == _OUT.unpack(answer)[2])


def _under_way(queue: Queue) -> list[Chain]:
    """The chains that the driver waits for and a dead file server had taken, or could have. `queue` then stands behind
    them.

    There is no record of them: requests are answered out of order, and neither ring says which are missing. But each
    head that was made available last after it was given back last is, and a driver may make a head available again only
    when it has it back. How many there are is the distance of the two indices; of those that could be, the ones count
    that have no answer yet.
    """
    available, used = queue.recent()
    queue.seek()
    missing = (queue.position - queue.used_index()) & 0xFFFF
    if missing > queue.size:
        raise GuestFault(f"queue {queue.index}: {missing} chains under way")
    if queue.index == HIPRIO:  # answered in order, and by nothing that could be looked at
        return [queue.walk(head) for head in available[len(available) - missing :]]
    # Positions from one origin: the available index is `missing` ahead of the used one.
    taken = {head: at for at, head in enumerate(available)}
    given = {head: at - missing for at, head in enumerate(used)}
    behind = sorted(taken, key=lambda head: taken[head] - given.get(head, -2 * queue.size), reverse=True)
    found: list[Chain] = []
    for head in behind:
        if len(found) == missing:
            break
        try:
            chain = queue.walk(head)
        except GuestFault:
            continue  # a free descriptor's remains
        if not _answered(chain):
            found.append(chain)
    return found
