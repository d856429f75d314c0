# SPDX-License-Identifier: GPL-2.0-only
"""What virtio devices and their transports keep across a snapshot. Imported by `save` and `restore` alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueState:
    """One virtqueue: its set-up, and where the device stands in its rings."""

    size: int
    ready: bool
    areas: tuple[int, int, int]
    last_avail: int
    next_used: int


@dataclass(frozen=True, slots=True)
class PortState:
    """One console port. `sent`: bytes of its next transmit chain that already went out."""

    ready: bool
    guest_open: bool
    host_open: bool
    pending: bytes
    sent: int


@dataclass(frozen=True, slots=True)
class ConsoleState:
    """virtio-console: its ports by number, and the control messages the driver has no buffer for yet."""

    columns: int
    rows: int
    ports: tuple[PortState | None, ...]
    control: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BalloonState:
    """virtio-balloon: pages wanted and handed over, and what the driver fills free pages with."""

    target: int
    actual: int
    poison: int


@dataclass(frozen=True, slots=True)
class MemState:
    """virtio-mem: bytes wanted, and a byte for each block, 1 where it is plugged."""

    requested: int
    plugged: bytes


@dataclass(frozen=True, slots=True)
class NetState:
    """virtio-net with a control queue: how many pairs of queues the driver wanted."""

    pairs: int


DeviceState = ConsoleState | BalloonState | MemState | NetState


@dataclass(frozen=True, slots=True)
class VirtioState:
    """What every virtio device has, and `device`: what its own type adds (None for most)."""

    device_id: int
    status: int
    driver_features: int
    config_generation: int
    queues: tuple[QueueState, ...]
    device: DeviceState | None = None


@dataclass(frozen=True, slots=True)
class MmioState:
    """The registers of a virtio-mmio transport (§4.2.2)."""

    device_feature_select: int
    driver_feature_select: int
    queue_select: int
    interrupt_status: int
    device: VirtioState


@dataclass(frozen=True, slots=True)
class PciState:
    """The registers of a virtio-pci transport (§4.1.4), its configuration space and its MSI-X table."""

    config: bytes
    msix: bytes
    device_feature_select: int
    driver_feature_select: int
    queue_select: int
    config_vector: int
    queue_vectors: tuple[int, ...]
    isr: int
    device: VirtioState
