# SPDX-License-Identifier: GPL-2.0-only
"""passt, the user-mode network: found, and told what the guest's network looks like.

It needs no privileges: it answers DHCP, ARP and, where the host has IPv6, router solicitations itself, and turns the
guest's TCP and UDP into sockets of its own.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.sys.process import find_program
from unikvm.vhost.backend import Program
from unikvm.vhost.forward import GUEST, LOOPBACK, MTU, check_free, parse_forward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "passt"
NETMASK = "255.255.255.0"
GATEWAY = "10.0.2.2"
GATEWAY_MAC = "52:55:0a:00:02:02"
NOBODY = "65534:65534"
_REJECT = 0x200  # RTF_REJECT in the kernel's table


def arguments(binary: str, fd: int, forwards: Sequence[str], *, routed: bool, routed6: bool) -> list[str]:
    """Its command line for the connection `fd`. `routed`, `routed6`: whether the host has a way out to the network by
    IPv4 and IPv6. Without the second the guest is not told that there is IPv6."""
    argv = [binary, "--foreground", "--stderr", "--quiet", "--fd", str(fd), "--mtu", str(MTU)]
    argv += ["--address", GUEST, "--netmask", NETMASK, "--gateway", GATEWAY, "--mac-addr", GATEWAY_MAC]
    if os.geteuid() == 0:
        argv += ["--runas", NOBODY]  # what it would do by itself, with a line of complaint
    if not routed6:
        argv.append("--ipv4-only")
    if not routed:  # passt insists on an interface
        argv += ["--outbound-if4" if routed6 else "--interface", "lo"]
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


def has_route6(table: str = "/proc/net/ipv6_route") -> bool:
    """The same for IPv6; what says that there is none is a route, too."""
    try:
        with open(table, encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    nowhere = "0" * 32
    return any(len(row) > 9 and row[:2] == [nowhere, "00"] and not int(row[8], 16) & _REJECT for row in rows)


def serve(forwards: Sequence[str] = ()) -> Program:
    """Start passt, with `forwards` (see `parse_forward`) from the host's ports. CannotRun where it cannot be had."""
    binary = find_program(PROGRAM)
    if not binary:
        raise CannotRun(
            "--net user needs passt or slirp4netns, and neither is on this host", hint="`make setup` installs it"
        )
    for text in forwards:
        check_free(text)
    routed, routed6 = has_route(), has_route6()
    return Program(
        "the user network",
        lambda fd: arguments(binary, fd, forwards, routed=routed, routed6=routed6),
        connected=True,
        again=True,
    )
