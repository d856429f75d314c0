# SPDX-License-Identifier: GPL-2.0-only
"""A directory for the guest (virtio 1.2 §5.11): FUSE requests, which a virtiofsd answers over vhost-user.

A file server cannot be replaced when it ends: what it knew of open files and inodes ended with it. The device answers
with ENOTCONN from then on, so the guest's processes get errors, and go on.
"""

from __future__ import annotations

import errno
from struct import Struct

from unikvm.errors import CannotRun, UnikvmError
from unikvm.uapi.virtio import VIRTIO_ID_FS
from unikvm.virtio.queue import Chain
from unikvm.virtio.vhostuser import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.vhost.backend import Backend
    from unikvm.virtio.state import VirtioState

MAX_TAG = 36  # bytes
_CONFIG = Struct("<36sI")  # struct virtio_fs_config: tag, num_request_queues
_IN = Struct("<IIQ")  # the head of struct fuse_in_header: len, opcode, unique
_OUT = Struct("<IiQ")  # struct fuse_out_header: len, error, unique


class Fs(VhostUser):
    """virtio-fs: the directory that `backend` serves, under the name `tag`."""

    name = "fs"
    device_id = VIRTIO_ID_FS
    queue_sizes = (128, 1024)  # FORGET and such, which have no answer (§5.11.2); requests

    def __init__(self, tag: str, backend: Backend, *, say: Callable[[str], object] = lambda _line: None) -> None:
        super().__init__(backend, say=say)
        name = tag.encode()
        if not 0 < len(name) <= MAX_TAG:
            raise CannotRun(f"a file system's tag has 1 to {MAX_TAG} bytes, not {tag!r}")
        self.config = _CONFIG.pack(name, 1)

    def save(self) -> VirtioState:
        """Not possible: what the guest knows of its files is in the file server's memory as well."""
        raise UnikvmError("a machine with a shared directory cannot be kept", hint="run it without --root and --rwdir")

    def refuse(self, chain: Chain) -> None:
        head = chain.read(_IN.size)
        if len(head) == _IN.size and chain.writable_len >= _OUT.size:
            _, _, unique = _IN.unpack(head)
            chain.write(_OUT.pack(_OUT.size, -errno.ENOTCONN, unique))
