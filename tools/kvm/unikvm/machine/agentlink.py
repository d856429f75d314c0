# SPDX-License-Identifier: GPL-2.0-only
"""The way to the guest's agent (tools/kvm/guest/agent.c), for whoever may ask this process for it.

The agent dials, and has one connection to us waiting at any time: so we know when it is there, and it listens to
nobody. It finds us at the port that has the number of its CID. A guest's connection is believed when it comes from a
port that only root may use there.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun, UnikvmError
from unikvm.lean import deque
from unikvm.sys.vhost import VhostVsock
from unikvm.sys.vsocket import VsockListener
from unikvm.virtio.vsock import Vsock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.sys.eventloop import EventLoop
    from unikvm.sys.vsocket import Listener

    Take = Callable[[int], object]
    Fail = Callable[[UnikvmError], object]

LAST_RESERVED_PORT = 1023  # linux/vm_sockets: af_vsock.c
FIRST_CID = 1 << 16  # below are those that people choose by hand
TRIES = 100


def make() -> tuple[Vsock, AgentLink]:
    """The device, with a number that nobody else on this host has, and the way over it. CannotRun where the host's
    kernel does not play."""
    vhost = VhostVsock()
    try:
        for _ in range(TRIES):
            cid = FIRST_CID + int.from_bytes(os.urandom(4), "little") % (0xFFFF_FFFF - FIRST_CID)
            listener = VsockListener()
            if listener.bind(cid) and vhost.set_cid(cid):
                return Vsock(vhost, cid), AgentLink(listener, cid)
            listener.close()
    except OSError as error:
        vhost.close()
        raise CannotRun(f"this host's vsock cannot be used: {error.strerror}", hint="modprobe vhost_vsock") from None
    vhost.close()
    raise CannotRun("this host has no free vsock number")


class AgentLink:
    """Keeps the agent's waiting connection, and gives it to the next who asks. All of it on the loop's thread."""

    def __init__(self, listener: Listener, cid: int) -> None:
        self._listener = listener
        self._cid = cid
        self._waiting = -1
        self._asking: deque[tuple[Take, Fail]] = deque()
        self._was_there = False

    def start(self, loop: EventLoop) -> None:
        """Let the agent come. On the io thread, or before it runs."""
        self._loop = loop
        loop.add(self._listener.fileno(), self._dialled)

    def connect(self, take: Take, fail: Fail, seconds: float) -> None:
        """Call `take(fd)` with a connection to the agent, at once or when it comes; `fail` after `seconds` without."""
        if self._waiting >= 0:
            fd, self._waiting = self._waiting, -1
            self._loop.remove(fd)
            take(fd)
            return
        asking = (take, fail)
        self._asking.append(asking)

        def late() -> None:
            if asking in self._asking:
                self._asking.remove(asking)
                why = "does not answer" if self._was_there else "has not come up"
                fail(UnikvmError(f"the guest's agent {why} within {seconds:g} s", hint="is vsock in its kernel?"))

        self._loop.call_later(seconds, late)

    def _dialled(self) -> None:
        try:
            fd, cid, port = self._listener.accept()
        except OSError:
            return  # who dialled is gone
        if cid != self._cid or port > LAST_RESERVED_PORT:
            os.close(fd)
            return
        self._was_there = True
        if self._asking:
            self._asking.popleft()[0](fd)
            return
        self._drop()  # what it left behind at a reset of the device
        self._waiting = fd
        self._loop.add(fd, self._drop)  # it says nothing before it is asked: it is gone

    def _drop(self) -> None:
        if self._waiting >= 0:
            fd, self._waiting = self._waiting, -1
            self._loop.remove(fd)
            os.close(fd)
