# SPDX-License-Identifier: GPL-2.0-only
"""What the register blocks of both transports have in common: selectors, features, status, queue set-up."""

from __future__ import annotations

from unikvm.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.virtio.device import VirtioDevice
    from unikvm.virtio.queue import Queue

    Ioeventfd = Callable[[int, int, int, "int | None"], None]


# add/remove an ioeventfd: address, length in bytes (0: any), eventfd, datamatch

DESC, AVAIL, USED = range(3)  # a queue's areas (§2.7), as `Queue.areas` numbers them


class TransportRegisters:
    """The registers of one device's transport. Writes come under the device's lock."""

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.reset_registers()

    def reset_registers(self) -> None:
        """As after power-on; called when the driver resets the device."""
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0

    def selected(self) -> Queue | None:
        """The queue that the driver selected, or None when there is none of that number."""
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def read_device_feature_select(self) -> int:
        return self.device_feature_select

    def write_device_feature_select(self, value: int) -> None:
        self.device_feature_select = value

    def read_device_feature(self) -> int:
        return self.device.offered_features(self.device_feature_select)

    def read_driver_feature_select(self) -> int:
        return self.driver_feature_select

    def write_driver_feature_select(self, value: int) -> None:
        self.driver_feature_select = value

    def read_driver_feature(self) -> int:
        select = self.driver_feature_select
        return self.device.driver_features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    def write_driver_feature(self, value: int) -> None:
        self.device.accept_features(self.driver_feature_select, value)

    def read_status(self) -> int:
        return self.device.status

    def write_status(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self.reset_registers()

    def read_config_generation(self) -> int:
        with self.device.lock:
            return self.device.config_generation

    def read_queue_select(self) -> int:
        return self.queue_select

    def write_queue_select(self, value: int) -> None:
        self.queue_select = value

    def read_queue_size(self) -> int:
        queue = self.selected()
        return queue.size if queue else 0

    def write_queue_size(self, value: int) -> None:
        queue = self.selected()
        if queue and not queue.ready:
            queue.size = value

    def read_queue_ready(self) -> int:
        queue = self.selected()
        return int(queue.ready) if queue else 0


def area_registers(name: str, low: int, area: int) -> tuple[Reg[TransportRegisters], Reg[TransportRegisters]]:
    """Both halves of the guest-physical address of a queue's `area`, at offsets `low` and `low + 4`."""

    def half(suffix: str, offset: int, shift: int) -> Reg[TransportRegisters]:
        def read(transport: TransportRegisters) -> int:
            queue = transport.selected()
            return queue.areas[area] >> shift & 0xFFFF_FFFF if queue else 0

        def write(transport: TransportRegisters, value: int) -> None:
            queue = transport.selected()
            if queue and not queue.ready:
                queue.areas[area] = queue.areas[area] & ~(0xFFFF_FFFF << shift) | value << shift

        return Reg(name + suffix, offset, 4, read, write)

    return half("_lo", low, 0), half("_hi", low + 4, 32)
