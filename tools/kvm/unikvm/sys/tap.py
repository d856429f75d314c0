# SPDX-License-Identifier: GPL-2.0-only
"""Tap interfaces (Documentation/networking/tuntap.rst): a network interface whose other end is a descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, inet_aton
from _socket import socket as Socket

from unikvm.errors import CannotRun
from unikvm.uapi import vhost as uapi

DEVICE = "/dev/net/tun"
HEADER_SIZE = 12  # struct virtio_net_hdr_v1, before each frame

_IFREQ = struct.Struct(f"{uapi.IFNAMSIZ}sH22x")  # struct ifreq with flags (linux/if.h)
_IFREQ_ADDRESS = struct.Struct(f"{uapi.IFNAMSIZ}sHH4s16x")  # with a struct sockaddr_in


class Tap:
    """The interface `name`, which is made where there is none; an empty name is the kernel's choice (tap0).

    It has a descriptor for each of its `queues`. One that was made here is gone after `close`. CannotRun where it
    cannot be had.
    """

    def __init__(self, name: str, queues: int = 1) -> None:
        if len(name.encode()) >= uapi.IFNAMSIZ or "/" in name:
            raise CannotRun(f"--net tap={name}: no name of an interface", hint=f"{uapi.IFNAMSIZ - 1} letters at most")
        self.made = not (name and os.path.exists(f"/sys/class/net/{name}"))
        self.fds: list[int] = []
        self.name = name
        try:
            for _ in range(queues):
                self._attach(several=queues > 1)
            fcntl.ioctl(self.fds[0], uapi.TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
        except OSError as error:
            self.close()
            if queues > 1 and error.errno in (errno.EINVAL, errno.E2BIG):
                few = f"--net tap={name},queues={queues}: it was not made for so many queues"
                raise CannotRun(few, hint=f"ip tuntap add {name} mode tap multi_queue") from None
            raise CannotRun(f"--net tap={name}: {error.strerror}", hint=_hint(error.errno or 0)) from None
        except CannotRun:
            self.close()
            raise

    def _attach(self, *, several: bool) -> None:
        """Another descriptor, and with it another queue."""
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            hint = "modprobe tun" if error.errno == errno.ENOENT else "run it as root, or use --net user"
            raise CannotRun(f"--net tap needs {DEVICE}: {error.strerror}", hint=hint) from None
        self.fds.append(fd)
        flags = uapi.IFF_TAP | uapi.IFF_NO_PI | uapi.IFF_VNET_HDR
        request = bytearray(_IFREQ.pack(self.name.encode(), flags | uapi.IFF_MULTI_QUEUE * several))
        try:
            fcntl.ioctl(fd, uapi.TUNSETIFF, request)
        except OSError as error:
            if several or error.errno != errno.EINVAL:
                raise
            # It was made for several queues, of which we take one.
            request = bytearray(_IFREQ.pack(self.name.encode(), flags | uapi.IFF_MULTI_QUEUE))
            fcntl.ioctl(fd, uapi.TUNSETIFF, request)
        self.name = bytes(_IFREQ.unpack(request)[0]).rstrip(b"\0").decode()

    def enable(self, index: int, on: bool) -> None:
        """Whether queue `index` gets frames; all do at first. For an interface with several."""
        flags = uapi.IFF_ATTACH_QUEUE if on else uapi.IFF_DETACH_QUEUE
        fcntl.ioctl(self.fds[index], uapi.TUNSETQUEUE, _IFREQ.pack(b"", flags))

    def set_offloads(self, bits: int) -> None:
        """What the reader takes unfinished: TUN_F_CSUM, TUN_F_TSO4 and the like."""
        fcntl.ioctl(self.fds[0], uapi.TUNSETOFFLOAD, bits)

    def configure(self, address: str, bits: int) -> None:
        """Give this machine's end an address, and bring it up. CannotRun where that is refused."""
        name = self.name.encode()
        mask = (0xFFFF_FFFF << 32 - bits & 0xFFFF_FFFF).to_bytes(4, "big")
        sock = Socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
        try:
            fcntl.ioctl(sock.fileno(), uapi.SIOCSIFADDR, _IFREQ_ADDRESS.pack(name, AF_INET, 0, inet_aton(address)))
            fcntl.ioctl(sock.fileno(), uapi.SIOCSIFNETMASK, _IFREQ_ADDRESS.pack(name, AF_INET, 0, mask))
            request = bytearray(_IFREQ.pack(name, 0))
            fcntl.ioctl(sock.fileno(), uapi.SIOCGIFFLAGS, request)
            fcntl.ioctl(sock.fileno(), uapi.SIOCSIFFLAGS, _IFREQ.pack(name, _IFREQ.unpack(request)[1] | uapi.IFF_UP))
        except OSError as error:
            raise CannotRun(f"--net tap: {self.name} does not take {address}/{bits}: {error.strerror}") from None
        finally:
            sock.close()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def _hint(number: int) -> str:
    if number == errno.EBUSY:
        return "another machine has it"
    if number == errno.EPERM:
        return "ip tuntap add mode tap user YOU, as root, or use --net user"
    return "ip link shows what it is; it has to be a tap"
