# SPDX-License-Identifier: GPL-2.0-only
"""virtio over MMIO, version 2 only (virtio 1.2 §4.2): one page of registers, one interrupt line.

Doorbells are ioeventfds that match the queue's number. Each interrupt costs the guest two exits to this
process (status read, acknowledge), which is why PCI is the default.
"""

from __future__ import annotations

from unikvm.lean import Lock
from unikvm.regs import Reg, RegisterBlock
from unikvm.uapi.virtio import (
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
)
from unikvm.virtio.transport import AVAIL, DESC, USED, TransportRegisters, area_registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.bus import Bus
    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import VirtioDevice
    from unikvm.virtio.state import MmioState
    from unikvm.virtio.transport import Ioeventfd

    class Line(Protocol):
        """What this needs of `irq.IrqLine`."""

        def set(self, level: bool) -> None: ...

        def pulse(self) -> None: ...


LENGTH = 0x1000  # bytes of address space
MAGIC = 0x7472_6976  # "virt"
VERSION = 2
VENDOR = 0x4D56_4B55  # "UKVM"


class VirtioMmio(TransportRegisters):
    """`device` at `address` of the guest's physical address space.

    `line` is level-triggered unless `edge`.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        address: int,
        bus: Bus,
        memory: GuestMemory,
        loop: EventLoop,
        line: Line,
        add_ioeventfd: Ioeventfd,
        remove_ioeventfd: Ioeventfd,
        edge: bool = False,
    ) -> None:
        # A device's thread sets bits while a vCPU acknowledges others, and the line follows. A leaf.
        self._interrupt_lock = Lock()
        super().__init__(device)
        self._address = address
        self._bus = bus
        self._line = line
        self._edge = edge
        self._remove_ioeventfd = remove_ioeventfd
        device.connect(memory, loop, self)
        bus.add(address, LENGTH, self)
        for index, doorbell in enumerate(device.doorbells):
            add_ioeventfd(address + VIRTIO_MMIO_QUEUE_NOTIFY, 4, doorbell.fd, index)

    def close(self) -> None:
        """Leave the bus, stop the device and release its descriptors."""
        self._bus.remove(self._address)
        for index, doorbell in enumerate(self.device.doorbells):
            self._remove_ioeventfd(self._address + VIRTIO_MMIO_QUEUE_NOTIFY, 4, doorbell.fd, index)
        self.device.close()

    # Transport: how the device reaches its driver.

    def queue_interrupt(self, index: int) -> Callable[[], None]:
        return self._queue_interrupt

    def _queue_interrupt(self) -> None:
        self._raise(VIRTIO_MMIO_INT_VRING)

    def queue_eventfd(self, index: int) -> int:
        return -1  # the driver reads InterruptStatus, which has to be set first

    def config_interrupt(self) -> None:
        self._raise(VIRTIO_MMIO_INT_CONFIG)

    def _raise(self, bit: int) -> None:
        with self._interrupt_lock:
            self._interrupt_status |= bit
            if self._edge:
                self._line.pulse()
            else:
                self._line.set(True)

    # The registers, as a bus device (§4.2.2).

    def read(self, offset: int, size: int) -> int:
        if offset >= VIRTIO_MMIO_CONFIG:
            return self.device.read_config(offset - VIRTIO_MMIO_CONFIG, size)
        return _REGISTERS.read(self, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self.device.lock:
            if offset >= VIRTIO_MMIO_CONFIG:
                self.device.write_config(offset - VIRTIO_MMIO_CONFIG, size, value)
            else:
                _REGISTERS.write(self, offset, size, value)

    def reset_registers(self) -> None:
        super().reset_registers()
        with self._interrupt_lock:
            self._interrupt_status = 0

    def write_status(self, value: int) -> None:
        super().write_status(value)
        if value == 0 and not self._edge:
            self._line.set(False)

    def read_device_id(self) -> int:
        return self.device.device_id

    def read_queue_num_max(self) -> int:
        queue = self.selected()
        return queue.max_size if queue else 0

    def write_queue_ready(self, value: int) -> None:
        queue = self.selected()
        if queue and value == 1:
            self.device.enable_queue(queue)
        elif queue and value == 0:
            self.device.disable_queue(queue)

    def write_queue_notify(self, value: int) -> None:
        self.device.ring(value)  # only where KVM has no ioeventfd for it

    def read_interrupt_status(self) -> int:
        return self._interrupt_status

    def write_interrupt_ack(self, value: int) -> None:
        with self._interrupt_lock:
            self._interrupt_status &= ~value
            if not self._interrupt_status and not self._edge:
                self._line.set(False)

    def save(self) -> MmioState:
        """The state for a snapshot; the vCPUs must be stopped."""
        from unikvm.virtio.state import MmioState

        with self.device.lock:
            device = self.device.save()
            return MmioState(
                device_feature_select=self.device_feature_select,
                driver_feature_select=self.driver_feature_select,
                queue_select=self.queue_select,
                interrupt_status=self._interrupt_status,
                device=device,
            )

    def restore(self, state: MmioState) -> None:
        """Take over `state`, with guest RAM restored already."""
        with self.device.lock:
            self.device.restore(state.device)
            self.device_feature_select = state.device_feature_select
            self.driver_feature_select = state.driver_feature_select
            self.queue_select = state.queue_select
            self._interrupt_status = state.interrupt_status
            if self._interrupt_status:
                self._raise(self._interrupt_status)


def _constant(value: int) -> Callable[[VirtioMmio], int]:
    return lambda _: value


_REGISTERS: RegisterBlock[VirtioMmio] = RegisterBlock(
    "virtio-mmio",
    VIRTIO_MMIO_CONFIG,
    Reg("MagicValue", VIRTIO_MMIO_MAGIC_VALUE, 4, _constant(MAGIC)),
    Reg("Version", VIRTIO_MMIO_VERSION, 4, _constant(VERSION)),
    Reg("DeviceID", VIRTIO_MMIO_DEVICE_ID, 4, VirtioMmio.read_device_id),
    Reg("VendorID", VIRTIO_MMIO_VENDOR_ID, 4, _constant(VENDOR)),
    Reg("DeviceFeatures", VIRTIO_MMIO_DEVICE_FEATURES, 4, VirtioMmio.read_device_feature),
    Reg("DeviceFeaturesSel", VIRTIO_MMIO_DEVICE_FEATURES_SEL, 4, None, VirtioMmio.write_device_feature_select),
    Reg("DriverFeatures", VIRTIO_MMIO_DRIVER_FEATURES, 4, None, VirtioMmio.write_driver_feature),
    Reg("DriverFeaturesSel", VIRTIO_MMIO_DRIVER_FEATURES_SEL, 4, None, VirtioMmio.write_driver_feature_select),
    Reg("QueueSel", VIRTIO_MMIO_QUEUE_SEL, 4, None, VirtioMmio.write_queue_select),
    Reg("QueueNumMax", VIRTIO_MMIO_QUEUE_NUM_MAX, 4, VirtioMmio.read_queue_num_max),
    Reg("QueueNum", VIRTIO_MMIO_QUEUE_NUM, 4, None, VirtioMmio.write_queue_size),
    Reg("QueueReady", VIRTIO_MMIO_QUEUE_READY, 4, VirtioMmio.read_queue_ready, VirtioMmio.write_queue_ready),
    Reg("QueueNotify", VIRTIO_MMIO_QUEUE_NOTIFY, 4, None, VirtioMmio.write_queue_notify),
    Reg("InterruptStatus", VIRTIO_MMIO_INTERRUPT_STATUS, 4, VirtioMmio.read_interrupt_status),
    Reg("InterruptACK", VIRTIO_MMIO_INTERRUPT_ACK, 4, None, VirtioMmio.write_interrupt_ack),
    Reg("Status", VIRTIO_MMIO_STATUS, 4, VirtioMmio.read_status, VirtioMmio.write_status),
    *area_registers("QueueDesc", VIRTIO_MMIO_QUEUE_DESC_LOW, DESC),
    *area_registers("QueueDriver", VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
    *area_registers("QueueDevice", VIRTIO_MMIO_QUEUE_USED_LOW, USED),
    # A length of all ones says that there is no shared memory region (§4.2.2).
    Reg("SHMLenLow", VIRTIO_MMIO_SHM_LEN_LOW, 4, _constant(0xFFFF_FFFF)),
    Reg("SHMLenHigh", VIRTIO_MMIO_SHM_LEN_HIGH, 4, _constant(0xFFFF_FFFF)),
    Reg("ConfigGeneration", VIRTIO_MMIO_CONFIG_GENERATION, 4, VirtioMmio.read_config_generation),
)
