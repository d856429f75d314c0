# SPDX-License-Identifier: GPL-2.0-only
"""/dev/vhost-net: the host's kernel serves the queues of a network device (linux/vhost.h). The only place for it.

It takes addresses of this process, as KVM does, and checks each that comes from a ring against the table of memory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from unikvm.errors import CannotRun
from unikvm.uapi import vhost as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE = "/dev/vhost-net"


class VhostNet:
    """One device of the kernel's, for rings in the memory of this process. OSError where an ioctl is refused."""

    def __init__(self) -> None:
        try:
            self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = "modprobe vhost_net" if error.errno == errno.ENOENT else "run it as root, or use --net user"
            raise CannotRun(f"--net tap needs {DEVICE}: {error.strerror}", hint=hint) from None
        try:
            fcntl.ioctl(self.fd, uapi.VHOST_SET_OWNER)
            bits = ctypes.c_uint64()
            fcntl.ioctl(self.fd, uapi.VHOST_GET_FEATURES, bits)
        except OSError as error:
            os.close(self.fd)
            raise CannotRun(f"{DEVICE} cannot be used: {error.strerror}") from None
        self.features = bits.value

    def set_memory(self, regions: Sequence[tuple[int, int, int]]) -> None:
        """Guest RAM: (guest-physical start, bytes, host address) of each stretch."""
        head = uapi.vhost_memory(nregions=len(regions))
        table = [uapi.vhost_memory_region(gpa, size, host, 0) for gpa, size, host in regions]
        fcntl.ioctl(self.fd, uapi.VHOST_SET_MEM_TABLE, bytearray(head) + b"".join(map(bytes, table)))

    def set_features(self, bits: int) -> None:
        fcntl.ioctl(self.fd, uapi.VHOST_SET_FEATURES, ctypes.c_uint64(bits & self.features))

    def set_ring(self, index: int, *, size: int, base: int, descriptors: int, available: int, used: int) -> None:
        """Where a ring is (host addresses), and the entry of its available ring to begin at."""
        fcntl.ioctl(self.fd, uapi.VHOST_SET_VRING_NUM, uapi.vhost_vring_state(index, size))
        fcntl.ioctl(self.fd, uapi.VHOST_SET_VRING_BASE, uapi.vhost_vring_state(index, base))
        address = uapi.vhost_vring_addr(index, 0, descriptors, used, available, 0)
        fcntl.ioctl(self.fd, uapi.VHOST_SET_VRING_ADDR, address)

    def set_kick(self, index: int, fd: int) -> None:
        self._file(uapi.VHOST_SET_VRING_KICK, index, fd)

    def set_call(self, index: int, fd: int) -> None:
        self._file(uapi.VHOST_SET_VRING_CALL, index, fd)

    def set_error(self, index: int, fd: int) -> None:
        """The eventfd that is signalled when the kernel finds the ring malformed."""
        self._file(uapi.VHOST_SET_VRING_ERR, index, fd)

    def start(self, index: int, fd: int) -> None:
        """Serve the ring from and to the tap interface `fd`."""
        self._file(uapi.VHOST_NET_SET_BACKEND, index, fd)

    def stop(self, index: int) -> int:
        """Stop serving: nothing touches the ring when this returns. The next entry of its available ring."""
        self._file(uapi.VHOST_NET_SET_BACKEND, index, -1)
        state = uapi.vhost_vring_state(index, 0)
        fcntl.ioctl(self.fd, uapi.VHOST_GET_VRING_BASE, state)
        return state.num

    def _file(self, request: int, index: int, fd: int) -> None:
        fcntl.ioctl(self.fd, request, uapi.vhost_vring_file(index, fd))

    def close(self) -> None:
        os.close(self.fd)
