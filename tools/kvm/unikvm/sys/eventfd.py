# SPDX-License-Identifier: GPL-2.0-only
"""eventfd(2): the doorbell between KVM, the devices and the threads."""

from __future__ import annotations

import os

_ONE = (1).to_bytes(8, "little")


class EventFd:
    """A non-blocking eventfd counter. Any thread may signal; one thread drains."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def signal(self) -> None:
        """Add one to the counter."""
        os.write(self.fd, _ONE)

    def drain(self) -> int:
        """Take the counter: how many signals came since the last drain (0 when none, and after `close`)."""
        if self.fd < 0:
            return 0
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
