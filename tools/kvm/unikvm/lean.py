# SPDX-License-Identifier: GPL-2.0-only
"""Parts of the standard library by the C modules they come from.

`collections`, `queue`, `signal` and `threading` bring `enum`, `functools`, `types` and more along: a tenth of a
payload's run.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bisect import bisect_right
    from collections import deque
    from heapq import heappop, heappush
    from queue import Empty, SimpleQueue
    from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGTERM, SIGUSR1, SIGWINCH, getsignal, pthread_kill, signal
    from threading import Lock, RLock
else:
    from _bisect import bisect_right
    from _collections import deque
    from _heapq import heappop, heappush
    from _queue import Empty, SimpleQueue
    from _signal import SIG_DFL, SIG_IGN, SIGHUP, SIGTERM, SIGUSR1, SIGWINCH, getsignal, pthread_kill, signal
    from _thread import RLock
    from _thread import allocate_lock as Lock

__all__ = [
    "SIGHUP",
    "SIGTERM",
    "SIGUSR1",
    "SIGWINCH",
    "SIG_DFL",
    "SIG_IGN",
    "Empty",
    "Lock",
    "RLock",
    "SimpleQueue",
    "bisect_right",
    "deque",
    "getsignal",
    "heappop",
    "heappush",
    "pthread_kill",
    "signal",
]
