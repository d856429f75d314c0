# SPDX-License-Identifier: GPL-2.0-only
"""/dev/vhost-*: the host's kernel serves the queues of a device (linux/vhost.h). The only place for it.

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


class Vhost:
    """One device of the kernel's, for rings in the memory of this process. OSError where an ioctl is refused."""

    device = ""
    module = ""

    def __init__(self, purpose: str, otherwise: str) -> None:
        """`purpose` is what needs it, `otherwise` what one without the right to it can do; CannotRun."""
        try:
            self.fd = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = f"modprobe {self.module}" if error.errno in (errno.ENOENT, errno.ENODEV) else otherwise
            raise CannotRun(f"{purpose} needs {self.device}: {error.strerror}", hint=hint) from None
        try:
            fcntl.ioctl(self.fd, uapi.VHOST_SET_OWNER)
            bits = ctypes.c_uint64()
            fcntl.ioctl(self.fd, uapi.VHOST_GET_FEATURES, bits)
        except OSError as error:
            os.close(self.fd)
            raise CannotRun(f"{self.device} cannot be used: {error.strerror}") from None
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

    def position(self, index: int) -> int:
        """The next entry of the available ring of a ring that is not served."""
        state = uapi.vhost_vring_state(index, 0)
        fcntl.ioctl(self.fd, uapi.VHOST_GET_VRING_BASE, state)
        return state.num

    def _file(self, request: int, index: int, fd: int) -> None:
        fcntl.ioctl(self.fd, request, uapi.vhost_vring_file(index, fd))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class VhostNet(Vhost):
    """/dev/vhost-net: rings between a driver and a tap interface."""

    device = "/dev/vhost-net"
    module = "vhost_net"

    def __init__(self) -> None:
        super().__init__("--net tap", "run it as root, or use --net user")

    def start(self, index: int, fd: int) -> None:
        """Serve the ring from and to the tap interface `fd`."""
        self._file(uapi.VHOST_NET_SET_BACKEND, index, fd)

    def stop(self, index: int) -> int:
        """Stop serving: nothing touches the ring when this returns. The next entry of its available ring."""
        self._file(uapi.VHOST_NET_SET_BACKEND, index, -1)
        return self.position(index)


class VhostVsock(Vhost):
    """/dev/vhost-vsock: sockets between the guest with a certain CID and this host. Its two rings run together."""

    device = "/dev/vhost-vsock"
    module = "vhost_vsock"

    def __init__(self) -> None:
        super().__init__("the guest's agent", "let this user read and write it")

    def set_cid(self, cid: int) -> bool:
        """Be the guest with the number `cid`; False where there is another one."""
        try:
            fcntl.ioctl(self.fd, uapi.VHOST_VSOCK_SET_GUEST_CID, ctypes.c_uint64(cid))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True

    def begin_again(self, cid: int) -> None:
        """Be another device with the number `cid`, which knows no memory and no rings yet: the kernel ends every
        connection that the old one had. It has no other way to."""
        os.close(self.fd)
        self.fd = -1
        self.fd = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, uapi.VHOST_SET_OWNER)
        if not self.set_cid(cid):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def run(self, running: bool) -> None:
        """Serve both rings, or neither: nothing touches them any more when this returns."""
        fcntl.ioctl(self.fd, uapi.VHOST_VSOCK_SET_RUNNING, ctypes.c_int(running))
