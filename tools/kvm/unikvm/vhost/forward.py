# SPDX-License-Identifier: GPL-2.0-only
"""Ports of the host that lead to the guest (--forward), and what else the programs of --net user have in common."""

from __future__ import annotations

from _socket import AF_INET, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket

from unikvm.errors import CannotRun

# The same network for every guest, and the same as QEMU's user network. The gateway is the host's loopback.
GUEST = "10.0.2.15"
LOOPBACK = "127.0.0.1"  # where forwarded ports are: who wants the guest on the whole network has a tap
# A frame has to go into the socket whole (see virtio/frames.py), and few large frames cost less than many small ones.
MTU = 32000


def parse_forward(text: str) -> tuple[bool, int, int]:
    """(udp, host port, guest port) of `HOST:GUEST[/tcp|/udp]`. CannotRun where it is something else."""
    ports, slash, protocol = text.partition("/")
    host, _, guest = ports.partition(":")
    if not (host.isdecimal() and guest.isdecimal() and 0 < int(host) < 1 << 16 and 0 < int(guest) < 1 << 16) or (
        slash and protocol not in ("tcp", "udp")
    ):
        raise CannotRun(f"--forward {text}: no two ports", hint="HOST:GUEST or HOST:GUEST/udp, as 8080:80")
    return protocol == "udp", int(host), int(guest)


def check_free(text: str) -> None:
    """CannotRun where somebody has the host's port of a forward, or where it is not ours to have: the program would
    find out when the guest has begun."""
    udp, port, _ = parse_forward(text)
    sock = Socket(AF_INET, SOCK_DGRAM if udp else SOCK_STREAM)
    try:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, int(not udp))
        sock.bind((LOOPBACK, port))
        if not udp:
            sock.listen(1)
    except OSError as error:
        raise CannotRun(f"--forward {text}: port {port}: {error.strerror}", hint="take another one") from None
    finally:
        sock.close()
