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
from unikvm.uapi.virtio_net import VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF
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
    fd = TAP_FD

    def __init__(self) -> None:
        self.offloads = -1
        self.closed = 0

    def set_offloads(self, bits: int) -> None:
        self.offloads = bits

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
    with bench(VhostNet(tap, kernel, mac=MAC)) as it:
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


def test_both_descriptors_are_closed_once(tap: FakeTap, kernel: Any) -> None:
    device = VhostNet(tap, kernel, mac=MAC)
    with bench(device) as it:
        it.start()
    device.discard()
    assert (tap.closed, kernel.closed) == (1, 1)


def test_a_kernel_that_is_too_old(tap: FakeTap) -> None:
    old: Any = FakeKernel(features=0)
    with pytest.raises(CannotRun, match="devices from before virtio"):
        VhostNet(tap, old, mac=MAC)


@pytest.mark.parametrize("name", ["sixteen-letters-", "a/b"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(CannotRun, match="no name of an interface"):
        Tap(name)
