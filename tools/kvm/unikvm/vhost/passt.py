# SPDX-License-Identifier: GPL-2.0-only
"""passt, the user-mode network: found, and told what the guest's network looks like.

It needs no privileges: it answers DHCP and ARP itself and turns the guest's TCP and UDP into sockets of its own.
"""

from __future__ import annotations

import os
from _socket import AF_INET, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket

from unikvm.errors import CannotRun
from unikvm.vhost.backend import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# The same network for every guest, and the same as QEMU's user network. The gateway is the host's loopback.
GUEST = "10.0.2.15"
NETMASK = "255.255.255.0"
GATEWAY = "10.0.2.2"
GATEWAY_MAC = "52:55:0a:00:02:02"
NOBODY = "65534:65534"
LOOPBACK = "127.0.0.1"  # where forwarded ports are: who wants the guest on the whole network has a tap
# A frame has to go into the socket whole (see virtio/frames.py), and few large frames cost less than many small ones.
MTU = 32000


def find() -> str:
    """The path of passt, or an empty string."""
    for directory in os.environ.get("PATH", "").split(":"):
        if directory and os.access(f"{directory}/passt", os.X_OK):
            return f"{directory}/passt"
    return ""


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
    """CannotRun where somebody has the host's port of a forward, or where it is not ours to have: passt would end when
    the guest has begun."""
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


def arguments(binary: str, fd: int, forwards: Sequence[str], *, routed: bool) -> list[str]:
    """Its command line for the connection `fd`. `routed`: whether the host has a way out to the network."""
    argv = [binary, "--foreground", "--stderr", "--quiet", "--ipv4-only", "--fd", str(fd), "--mtu", str(MTU)]
    argv += ["--address", GUEST, "--netmask", NETMASK, "--gateway", GATEWAY, "--mac-addr", GATEWAY_MAC]
    if os.geteuid() == 0:
        argv += ["--runas", NOBODY]  # what it would do by itself, with a line of complaint
    if not routed:
        argv += ["--interface", "lo"]  # passt insists on an interface
    for text in forwards:
        udp, host, guest = parse_forward(text)
        argv += ["--udp-ports" if udp else "--tcp-ports", f"{LOOPBACK}/{host}:{guest}"]
    return argv


def has_route(table: str = "/proc/net/route") -> bool:
    """Whether this host has a default route (a destination and a mask of zero in the kernel's table)."""
    try:
        with open(table, encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    return any(len(row) > 7 and row[1] == row[7] == "00000000" for row in rows)


def serve(forwards: Sequence[str] = ()) -> Program:
    """Start passt, with `forwards` (see `parse_forward`) from the host's ports. CannotRun where it cannot be had."""
    binary = find()
    if not binary:
        raise CannotRun("--net user needs passt, which is not on this host", hint="`make setup` installs it")
    for text in forwards:
        check_free(text)
    routed = has_route()
    return Program(
        "the user network",
        lambda fd: arguments(binary, fd, forwards, routed=routed),
        connected=True,
        again=True,
    )
