# SPDX-License-Identifier: GPL-2.0-only
"""Which chains a driver still waits for, from the rings alone, when the one who served them is no more."""

from __future__ import annotations

from unikvm.errors import GuestFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.virtio.queue import Queue


MOMENTS = 100  # that are looked at; the earliest, which have stood the longest test


def under_way(queue: Queue) -> list[int]:
    """The heads of the chains that were made available and not given back, in the order of the available ring.

    Requests are given back out of order, so the used index alone does not say which they are. But a head is available
    and used in turn. So from any moment at which nothing was under way, the heads that were available once more often
    than they were used are the answer. Such moments are looked for in what both rings reach back to: those where no
    head's count comes out other than 0 or 1, and from which the entries of both rings can have happened one after the
    other. Few others pass; the answer that most give is taken. GuestFault where there is none.
    """
    available, used = queue.recent()
    missing = queue.distance()
    if missing > queue.size:
        raise GuestFault(f"queue {queue.index}: {missing} chains are said to be under way")
    votes: dict[tuple[int, ...], int] = {}
    for at in _balanced(available, used, missing)[-MOMENTS:]:
        taken, given = available[at:], used[at + missing :]
        if _possible(taken, given):
            answer = _difference(taken, given)
            votes[answer] = votes.get(answer, 0) + 1
    if not votes:
        raise GuestFault(f"queue {queue.index}: the rings do not say which chains are under way")
    return list(max(votes.items(), key=lambda item: item[1])[0])


def _difference(taken: list[int], given: list[int]) -> tuple[int, ...]:
    """The heads that are in `taken` more often than in `given`, by where they were taken last."""
    balance: dict[int, int] = {}
    for head in given:
        balance[head] = balance.get(head, 0) - 1
    last = {}
    for at, head in enumerate(taken):
        balance[head] = balance.get(head, 0) + 1
        last[head] = at
    return tuple(sorted((head for head in last if balance[head] > 0), key=last.__getitem__))


def _balanced(available: list[int], used: list[int], missing: int) -> list[int]:
    """The places in `available` from which on each head comes as often as in `used`, or once more; the last one first.

    `available[at:]` and `used[at + missing:]` are what came after the same moment, if nothing was under way then.
    """
    balance: dict[int, int] = {}
    wrong = 0
    found = []
    end = len(available) - missing
    for at in range(len(available) - 1, -1, -1):
        changes = [(available[at], 1)]
        if at < end:
            changes.append((used[at + missing], -1))
        for head, change in changes:
            before = balance.get(head, 0)
            after = balance[head] = before + change
            wrong += (after not in (0, 1)) - (before not in (0, 1))
        if at <= end and not wrong:
            found.append(at)
    return found if missing else [end, *found]


def _possible(available: list[int], used: list[int]) -> bool:
    """Whether the entries of both rings can have come in turn, each head available before it is used, and used before
    it is available again."""
    places: dict[int, list[int]] = {}
    for at, head in enumerate(available):
        places.setdefault(head, []).append(at)
    turns = dict.fromkeys(places, 0)
    furthest = -1  # what had to be available for the entries of `used` so far
    for head in used:
        turn = turns.get(head, 0)
        mine = places.get(head, ())
        if turn >= len(mine):
            return False
        furthest = max(furthest, mine[turn])
        turns[head] = turn + 1
        if turn + 1 < len(mine) and mine[turn + 1] <= furthest:
            return False
    return True
