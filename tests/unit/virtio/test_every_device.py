# SPDX-License-Identifier: GPL-2.0-only
"""Whatever a driver puts into its rings: a device touches nothing that it was not given, and raises nothing.

A new device is a line in DEVICES. tests/payloads/hostile.c does the like from within a guest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import pack, unpack_from

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.p9.messages import Malformed
from unikvm.p9.server import Server, serve
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)
from unikvm.virtio.blk import Blk
from unikvm.virtio.console import Console
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.fs import Fs
from unikvm.virtio.net import Net
from unikvm.virtio.p9 import P9
from unikvm.virtio.port import Port
from unikvm.virtio.rng import Rng
from unikvm.virtio.vhostblk import VhostBlk
from unikvm.virtio.vsock import Vsock
from unit.vhost.peer import PROTOCOL, Peer
from unit.virtio import test_net, test_p9, test_vsock
from unit.virtio.driver import RAM, Bench, bench

SIZE = 8  # of each ring
ZONE, ZONE_END = 0x20_0000, 0x21_0000  # where buffers and indirect tables may be
NESTED = 10  # descriptors in indirect tables
TABLES = ZONE_END - 0x1000  # indirect tables; no buffer reaches that far, so that a device cannot change them


def lost(make: Callable[[Peer], VirtioDevice]) -> VirtioDevice:
    """A device whose back end will be gone: it answers by itself."""
    peer = Peer(protocol=PROTOCOL | 1 << 9)
    peer.config = bytes(60)
    device = make(peer)
    device.peer = peer  # type: ignore[attr-defined]
    return device


def console(folder: Path) -> Console:
    source, typing = os.pipe()
    os.write(typing, b"typed" * 100)
    os.close(typing)
    null = os.open(os.devnull, os.O_WRONLY)
    device = Console(Port(source=source, sink=null), [Port("one", sink=null), Port("two", sink=len)])
    os.close(source)
    os.close(null)
    return device


def net(folder: Path) -> Net:
    peer = test_net.Peer()
    peer.send(*(bytes(range(60)) * count for count in range(1, 20)))
    return Net(peer, peer.plug, mtu=9000)


def p9(folder: Path) -> P9:
    """With the real server, whose answers come when they come."""
    peer = test_p9.Peer()
    sock, server = peer.ours.dup(), Server(str(folder))

    def run() -> None:
        with sock, suppress(Malformed, OSError):
            serve(sock, server)

    threading.Thread(target=run, daemon=True).start()
    return P9("tag", peer)


def vsock(*, new_number: bool) -> Vsock:
    """Its event queue is ours, and takes a chain where the driver has to be told of a new number."""
    device = Vsock(test_vsock.FakeKernel(), 0x1234_5678)  # type: ignore[arg-type]
    device._new_cid = new_number
    return device


DEVICES: dict[str, Callable[[Path], VirtioDevice]] = {
    "blk": lambda folder: Blk(str(folder / "image"), queues=2),
    "blk direct": lambda folder: Blk(str(folder / "image"), direct=True),
    "blk read-only": lambda folder: Blk(str(folder / "image"), readonly=True),
    "console": console,
    "net": net,
    "rng": lambda folder: Rng(),
    "9p": p9,
    "vsock": lambda folder: vsock(new_number=False),
    "vsock with a new number": lambda folder: vsock(new_number=True),
    "fs without a back end": lambda folder: lost(lambda peer: Fs("tag", peer)),
    "blk without a back end": lambda folder: lost(VhostBlk),
}

address = st.one_of(
    st.integers(ZONE, TABLES - 1),
    st.sampled_from([0, ZONE, ZONE + 1, RAM - 1, RAM, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, (1 << 64) - 16]),
)
length = st.one_of(st.sampled_from([0, 1, 12, 16, 17, 20, 512, 4096, 1 << 31, (1 << 32) - 1]), st.integers(0, 2000))
flags = st.sampled_from([0, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE])
descriptor = st.tuples(address, length, flags, st.integers(0, SIZE))
indirect = st.tuples(
    st.integers(0, NESTED - 1).map(lambda at: TABLES + 16 * at),
    st.sampled_from([16, 32, 64, 128, 128, 128, 0, 15, 24, 1 << 20]),
    st.just(VRING_DESC_F_INDIRECT),
    st.just(0),
)
# What requests begin with: virtio-blk's header of each kind, console control messages, 9P's header, nothing.
header = st.one_of(
    st.builds(pack, st.just("<IIQ"), st.integers(0, 14), st.just(0), st.integers(0, 130)),
    st.builds(pack, st.just("<IHH"), st.integers(0, 3), st.integers(0, 8), st.integers(0, 2)),
    st.builds(
        pack, st.just("<IBH"), st.sampled_from([7, 12, 16, 17, 20, 512, 4096]), st.integers(0, 130), st.integers(0, 3)
    ),
    st.binary(max_size=40),
)
round_of = st.tuples(
    st.lists(st.one_of(descriptor, descriptor, indirect), min_size=SIZE, max_size=SIZE),
    st.lists(descriptor, min_size=NESTED, max_size=NESTED),
    st.lists(st.integers(0, SIZE), max_size=SIZE),
    st.lists(header, min_size=1, max_size=3),
    st.integers(0, 8),
)


def writable(table: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    return [(start, size) for start, size, flag, _ in table if flag & VRING_DESC_F_WRITE and start + size <= RAM]


def play(
    it: Bench, index: int, direct: list[tuple[int, int, int, int]], nested: list[tuple[int, int, int, int]]
) -> None:
    ring = it.rings[index]
    for at, one in enumerate(direct):
        ring.descriptor(at, *one)
    for at, one in enumerate(nested):
        it.memory.write(TABLES + 16 * at, pack("<QIHH", *one))


def untouched(it: Bench, before: bytes, allowed: list[tuple[int, int]]) -> None:
    after = bytearray(it.memory.read(0, RAM))
    for ring in it.rings:
        (flag, _) = unpack_from("<HH", after, ring.used)
        assert flag == 0
        allowed.append((ring.used, 6 + 8 * ring.size))
    for start, size in allowed:
        after[start : start + size] = before[start : start + size]
    assert after == before, "the device wrote to memory that it was not given"


@pytest.mark.parametrize("name", DEVICES)
def test_nothing_else_is_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(512 * 128))

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rounds=st.lists(round_of, min_size=1, max_size=3), features=st.integers(0, (1 << 64) - 1))
    def check(rounds: list[tuple[list, list, list, list, int]], features: int) -> None:  # type: ignore[type-arg]
        with bench(DEVICES[name](tmp_path)) as it:
            it.start(features=it.device.offered & (features | 1 << 32 | 1 << 28), size=SIZE)
            peer = getattr(it.device, "peer", None)
            if peer is not None:
                peer.hang_up()
                while it.device._front is not None:  # type: ignore[attr-defined]
                    it.settle(1)
            it.memory.write(ZONE, bytes(range(256)) * ((ZONE_END - ZONE) // 256))
            allowed: list[tuple[int, int]] = []  # an answer may come in a later round
            for direct, nested, heads, headers, which in rounds:
                index = which % len(it.rings)
                ring = it.rings[index]
                if it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET:
                    break
                play(it, index, direct, nested)
                for at, data in enumerate(headers):
                    place = direct[at][0]
                    if ZONE <= place < TABLES - len(data):
                        it.memory.write(place, data)
                for head in heads:
                    ring.offer(head)
                before = it.memory.read(0, RAM)
                allowed += writable(direct) + writable(nested)
                it.kick(index)
                untouched(it, before, allowed)
                assert len(ring.take_used()) <= len(heads) + SIZE
            it.device.write_status(0)
            assert it.device.status == 0

    check()
