# SPDX-License-Identifier: GPL-2.0-only
"""The network device that the kernel serves: what the kernel is told, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from unikvm.errors import CannotRun
from unikvm.sys.tap import Tap
from unikvm.uapi.vhost import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN
from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from unikvm.uapi.virtio_net import (
    VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_OK,
)
from unikvm.virtio.state import NetState
from unikvm.virtio.vhostnet import VhostNet
from unit.virtio.driver import Bench, bench

KERNEL = (
    1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
)
MAC = bytes.fromhex("020000000001")
TAP_FD = 77


class FakeTap:
    name = "tap0"

    def __init__(self, queues: int = 1) -> None:
        self.fds = [TAP_FD + number for number in range(queues)]
        self.enabled = set(range(queues))
        self.offloads = -1
        self.closed = 0

    def set_offloads(self, bits: int) -> None:
        self.offloads = bits

    def enable(self, index: int, on: bool) -> None:
        assert (index in self.enabled) != on
        self.enabled ^= {index}

    def close(self) -> None:
        self.closed += 1


class FakeKernel:
    """Remembers what it was told."""

    def __init__(self, features: int = KERNEL) -> None:
        self.features = features
        self.memory: list[tuple[int, int, int]] = []
        self.accepted = -1
        self.rings: dict[int, dict[str, int]] = {}
        self.fds: dict[tuple[str, int], int] = {}
        self.served: dict[int, int] = {}
        self.positions = {0: 5, 1: 6}
        self.refuses = False
        self.closed = 0

    def set_memory(self, regions: list[tuple[int, int, int]]) -> None:
        self.memory = regions

    def set_features(self, bits: int) -> None:
        assert not self.served, "features are not to change under a ring"
        self.accepted = bits

    def set_ring(self, index: int, **ring: int) -> None:
        assert index not in self.served
        if self.refuses:
            raise OSError(14, os.strerror(14))
        self.rings[index] = ring

    def set_kick(self, index: int, fd: int) -> None:
        self.fds["kick", index] = fd

    def set_call(self, index: int, fd: int) -> None:
        self.fds["call", index] = fd

    def set_error(self, index: int, fd: int) -> None:
        self.fds["error", index] = fd

    def start(self, index: int, fd: int) -> None:
        assert self.fds["kick", index] >= 0
        self.served[index] = fd

    def stop(self, index: int) -> int:
        del self.served[index]
        return self.positions[index]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def tap() -> FakeTap:
    return FakeTap()


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def net(tap: FakeTap, kernel: Any) -> Iterator[Bench]:
    with bench(VhostNet(tap, [kernel], mac=MAC)) as it:
        yield it


def test_rings_are_handed_over(net: Bench, tap: FakeTap, kernel: FakeKernel) -> None:
    net.start()
    assert kernel.served == {0: TAP_FD, 1: TAP_FD}
    assert kernel.accepted == net.device.driver_features
    assert tap.offloads == TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
    assert [(gpa, size) for gpa, size, _ in kernel.memory] == [(r.gpa, r.size) for r in net.memory.regions]
    ring = net.rings[1]
    assert kernel.rings[1] == {
        "size": 256,
        "base": 0,
        "descriptors": net.memory.host_address(ring.desc),
        "available": net.memory.host_address(ring.avail),
        "used": net.memory.host_address(ring.used),
    }
    # What the driver made available before it was ready is looked for.
    assert int.from_bytes(os.read(kernel.fds["kick", 0], 8), "little") == 1


def test_offloads_that_the_driver_does_not_want(net: Bench, tap: FakeTap) -> None:
    net.start(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_GUEST_TSO4)  # without GUEST_CSUM: against the rules
    assert tap.offloads == 0
    net.device.reset()
    net.start(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_GUEST_CSUM)
    assert tap.offloads == TUN_F_CSUM


def test_a_reset_takes_the_rings_back(net: Bench, kernel: FakeKernel) -> None:
    net.start()
    net.device.write_status(0)
    assert kernel.served == {}
    net.start()
    assert kernel.served == {0: TAP_FD, 1: TAP_FD}
    assert kernel.rings[0]["base"] == 0


def test_interrupts_of_a_transport_without_eventfds(net: Bench, kernel: FakeKernel) -> None:
    net.start()
    os.write(kernel.fds["call", 1], (1).to_bytes(8, "little"))
    net.settle()
    assert net.transport.queue_interrupts == {1: 1}


def test_another_vector(net: Bench, kernel: FakeKernel) -> None:
    net.start()
    net.transport.eventfds[0] = 99
    net.device.eventfd_changed(0)
    assert kernel.fds["call", 0] == 99


def test_what_the_kernel_finds_malformed(net: Bench, kernel: FakeKernel) -> None:
    net.start()
    os.write(kernel.fds["error", 0], (1).to_bytes(8, "little"))
    net.settle()
    assert net.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert kernel.served == {}


def test_a_ring_that_the_kernel_refuses(net: Bench, kernel: FakeKernel) -> None:
    kernel.refuses = True
    net.start()
    assert net.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert kernel.served == {}


def test_snapshot(net: Bench, kernel: FakeKernel) -> None:
    net.start()
    state = net.device.save()
    assert [queue.last_avail for queue in state.queues] == [5, 6]
    assert kernel.served == {0: TAP_FD, 1: TAP_FD}
    assert kernel.rings[1]["base"] == 6
    net.device.restore(state)
    assert kernel.rings[0]["base"] == 5


PAIRS = 3
CONTROL = 2 * PAIRS


@pytest.fixture
def taps() -> FakeTap:
    return FakeTap(PAIRS)


@pytest.fixture
def kernels() -> list[Any]:
    return [FakeKernel() for _ in range(PAIRS)]


@pytest.fixture
def several(taps: FakeTap, kernels: list[Any]) -> Iterator[Bench]:
    with bench(VhostNet(taps, kernels, mac=MAC)) as it:
        yield it


def ask(net: Bench, request: bytes, *, control: int = CONTROL) -> int:
    """What the device answers to a command."""
    answer = net.buffer(b"\xff")
    net.rings[control].add([net.buffer(request[:2]), net.buffer(request[2:])], [answer])
    net.kick(control)
    assert net.rings[control].take_used()[0][1] == 1
    return net.memory.view(answer[0], 1)[0]


def pairs(count: int) -> bytes:
    return bytes([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET]) + count.to_bytes(2, "little")


def in_use(taps: FakeTap, kernels: list[Any]) -> int:
    """How many pairs of queues the interface and the kernel move frames through."""
    count = len(taps.enabled)
    assert taps.enabled == set(range(count))
    for number, kernel in enumerate(kernels):
        assert kernel.served == ({0: TAP_FD + number, 1: TAP_FD + number} if number < count else {})
    return count


def test_pairs_of_queues(several: Bench, taps: FakeTap, kernels: list[Any]) -> None:
    """One at first (§5.1.6.5.5), then as many as the driver says."""
    assert int.from_bytes(several.device.config[8:10], "little") == PAIRS
    several.start()
    assert in_use(taps, kernels) == 1
    for count in (PAIRS, 2, 1, 2, 2):
        assert ask(several, pairs(count)) == VIRTIO_NET_OK
        assert in_use(taps, kernels) == count
    assert kernels[1].rings[1]["base"] == 6, "a ring goes on where it stopped"
    ring = several.rings[3]
    assert kernels[1].rings[1]["descriptors"] == several.memory.host_address(ring.desc)
    os.read(kernels[1].fds["kick", 1], 8)  # it was rung, for what came before
    several.device.reset()
    assert not any(kernel.served for kernel in kernels)
    several.start()
    assert in_use(taps, kernels) == 1


@pytest.mark.parametrize(
    "request_", [pairs(0), pairs(PAIRS + 1), pairs(0xFFFF), pairs(2)[:3], pairs(2) + b"\0", b"\x04\x01\x02\0", bytes(4)]
)
def test_what_the_driver_cannot_have(several: Bench, taps: FakeTap, kernels: list[Any], request_: bytes) -> None:
    several.start()
    assert ask(several, request_) == VIRTIO_NET_ERR
    assert in_use(taps, kernels) == 1
    assert not several.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_a_command_without_room_for_its_answer(several: Bench, kernels: list[Any]) -> None:
    several.start()
    several.rings[CONTROL].add([several.buffer(pairs(2))], [])
    several.kick(CONTROL)
    assert several.device.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert not any(kernel.served for kernel in kernels)


def test_a_driver_of_one_pair(several: Bench, taps: FakeTap, kernels: list[Any]) -> None:
    """Without MQ the control queue is the third one (§5.1.2), and there is nothing to command."""
    several.start(several.device.offered & ~(1 << VIRTIO_NET_F_MQ))
    assert ask(several, pairs(2), control=2) == VIRTIO_NET_ERR
    assert in_use(taps, kernels) == 1
    several.device.reset()
    several.start()
    assert ask(several, pairs(3)) == VIRTIO_NET_OK
    assert in_use(taps, kernels) == 3


def test_an_interface_that_does_not_change(several: Bench, taps: FakeTap, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_index: int, _on: bool) -> None:
        raise OSError(22, os.strerror(22))

    several.start()
    monkeypatch.setattr(taps, "enable", refuse)
    several.rings[CONTROL].add([several.buffer(pairs(2))], [several.buffer(1)])
    several.kick(CONTROL)
    assert several.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_snapshot_of_several_pairs(several: Bench, taps: FakeTap, kernels: list[Any]) -> None:
    several.start()
    ask(several, pairs(2))
    state = several.device.save()
    assert state.device == NetState(pairs=2)
    assert in_use(taps, kernels) == 2
    several.device.restore(state)
    assert in_use(taps, kernels) == 2
    assert ask(several, pairs(3)) == VIRTIO_NET_OK
    assert in_use(taps, kernels) == 3


def test_both_descriptors_are_closed_once(tap: FakeTap, kernel: Any) -> None:
    device = VhostNet(tap, [kernel], mac=MAC)
    with bench(device) as it:
        it.start()
    device.discard()
    assert (tap.closed, kernel.closed) == (1, 1)


def test_a_kernel_that_is_too_old(tap: FakeTap) -> None:
    old: Any = FakeKernel(features=0)
    with pytest.raises(CannotRun, match="devices from before virtio"):
        VhostNet(tap, [old], mac=MAC)


@pytest.mark.parametrize("name", ["sixteen-letters-", "a/b"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(CannotRun, match="no name of an interface"):
        Tap(name)
