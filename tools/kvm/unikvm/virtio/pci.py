# SPDX-License-Identifier: GPL-2.0-only
"""virtio over PCI, modern only (virtio 1.2 §4.1): one memory BAR, MSI-X, a doorbell address for each queue.

Doorbells are ioeventfds and interrupts are irqfds: once the driver is ready, neither exits to this process.
There is no INTx pin. The registers of this file are reached by vCPU threads; `VirtioDevice.lock` protects
them.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import UnikvmError
from unikvm.lean import Lock
from unikvm.msix import Msix
from unikvm.pci import PciFunction
from unikvm.regs import Reg, RegisterBlock
from unikvm.uapi.virtio import (
    VIRTIO_ID_BLOCK,
    VIRTIO_ID_CONSOLE,
    VIRTIO_ID_NET,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_PCI_CAP_COMMON_CFG,
    VIRTIO_PCI_CAP_DEVICE_CFG,
    VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG,
    VIRTIO_PCI_CAP_PCI_CFG,
    VIRTIO_PCI_COMMON_CFGGENERATION,
    VIRTIO_PCI_COMMON_DF,
    VIRTIO_PCI_COMMON_DFSELECT,
    VIRTIO_PCI_COMMON_GF,
    VIRTIO_PCI_COMMON_GFSELECT,
    VIRTIO_PCI_COMMON_MSIX,
    VIRTIO_PCI_COMMON_NUMQ,
    VIRTIO_PCI_COMMON_Q_AVAILLO,
    VIRTIO_PCI_COMMON_Q_DESCLO,
    VIRTIO_PCI_COMMON_Q_ENABLE,
    VIRTIO_PCI_COMMON_Q_MSIX,
    VIRTIO_PCI_COMMON_Q_NOFF,
    VIRTIO_PCI_COMMON_Q_SELECT,
    VIRTIO_PCI_COMMON_Q_SIZE,
    VIRTIO_PCI_COMMON_Q_USEDLO,
    VIRTIO_PCI_COMMON_STATUS,
    VIRTIO_PCI_ISR_CONFIG,
)
from unikvm.virtio.transport import AVAIL, DESC, USED, TransportRegisters, area_registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from unikvm.memory import GuestMemory
    from unikvm.msix import Vector
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import VirtioDevice
    from unikvm.virtio.state import PciState
    from unikvm.virtio.transport import Ioeventfd

    class VectorSource(Protocol):
        """What this needs of `irq.IrqController`."""

        def msi(self) -> Vector: ...


VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040  # a modern device's ID is this plus its virtio device ID (§4.1.2.1)
SUBSYSTEM = (VENDOR, 0x1100)
_CLASSES = {VIRTIO_ID_NET: 0x020000, VIRTIO_ID_BLOCK: 0x018000, VIRTIO_ID_CONSOLE: 0x078000}
_CLASS_OTHER = 0x00FF00

# The BAR: one page for each structure.
BAR_SIZE = 0x8000
PAGE = 0x1000
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = range(6)
NOTIFY_MULTIPLIER = 4  # bytes between the doorbells of two queues
COMMON_LENGTH = 56  # struct virtio_pci_common_cfg
_ISR_QUEUE = 1
_CAP = Struct("<BBBB2xII")  # struct virtio_pci_cap from cap_len on: cap_len, cfg_type, bar, id, offset, length
PCI_CAP_ID_VENDOR = 0x09
_CFG_DATA = 16  # pci_cfg_data in struct virtio_pci_cfg_cap


class VirtioPci(PciFunction, TransportRegisters):
    """`device` as a PCI function.

    Plug it in with `PciBus.add`, which needs an address for its one BAR (`bar`).
    """

    _config_vector: int
    _queue_vectors: list[int]
    _isr: int

    def __init__(
        self,
        device: VirtioDevice,
        *,
        memory: GuestMemory,
        loop: EventLoop,
        irq: VectorSource,
        add_ioeventfd: Ioeventfd,
        remove_ioeventfd: Ioeventfd,
    ) -> None:
        kind = device.device_id
        PciFunction.__init__(
            self,
            VENDOR,
            FIRST_DEVICE + kind,
            _CLASSES.get(kind, _CLASS_OTHER),
            revision=1,
            subsystem=SUBSYSTEM,
        )
        self._isr_lock = Lock()  # a leaf: a device's thread sets bits while a vCPU takes others
        TransportRegisters.__init__(self, device)
        self._add_ioeventfd = add_ioeventfd
        self._remove_ioeventfd = remove_ioeventfd
        self._doorbells: list[tuple[int, int]] = []  # (address, eventfd) that KVM catches
        queues = len(device.queue_sizes)
        self.bar = self.add_bar(0, BAR_SIZE, self, moved=self._moved)
        self.msix = Msix(self, queues + 1, irq.msi, bar=0, table_offset=TABLE * PAGE, pending_offset=PENDING * PAGE)
        self.msix.switched = self._msix_switched
        self._add_structure(VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_LENGTH)
        self._add_structure(VIRTIO_PCI_CAP_ISR_CFG, ISR, 1)
        if device.config:
            self._add_structure(VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, len(device.config))
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self._add_structure(VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, NOTIFY_MULTIPLIER * queues, multiplier)
        self._window = self._add_window()
        self._gone = False
        try:
            device.connect(memory, loop, self)
        except BaseException:
            device.close()
            raise

    def close(self) -> None:
        """Stop the device and release its descriptors. From any thread; PciBus.remove comes first where there are
        vCPUs running."""
        with self.device.lock:
            self._gone = True  # a vCPU may be in an access that began before the removal
        self._moved(None)  # KVM names an ioeventfd by its descriptor: before that is closed
        self.device.close()
        self.msix.close()

    # Transport: how the device reaches its driver.

    def queue_interrupt(self, index: int) -> Callable[[], None]:
        msix = self.msix

        def send() -> None:
            if msix.enabled:
                vector = self._queue_vectors[index]
                if vector != VIRTIO_MSI_NO_VECTOR:
                    msix.trigger(vector)
            else:
                self._set_isr(_ISR_QUEUE)

        return send

    def queue_eventfd(self, index: int) -> int:
        vector = self._queue_vectors[index]
        return self.msix.vector(vector).fd if self.msix.enabled and vector != VIRTIO_MSI_NO_VECTOR else -1

    def _msix_switched(self) -> None:
        """The guest enabled or disabled MSI-X: what interrupts it is another eventfd."""
        with self.device.lock:
            for index in range(len(self.device.queues)):
                self.device.eventfd_changed(index)

    def config_interrupt(self) -> None:
        if not self.msix.enabled:
            self._set_isr(_ISR_QUEUE | VIRTIO_PCI_ISR_CONFIG)
        elif self._config_vector != VIRTIO_MSI_NO_VECTOR:
            self.msix.trigger(self._config_vector)

    # The BAR, as a bus device.

    def read(self, offset: int, size: int) -> int:
        if self._gone:
            return 0  # of the status: a driver that resets the device goes on
        page, offset = offset // PAGE, offset % PAGE
        if page == COMMON:
            return _COMMON.read(self, offset, size)
        if page == DEVICE:
            return self.device.read_config(offset, size)
        if page == TABLE:
            return self.msix.read(offset, size)
        if page == PENDING:
            return self.msix.read_pending(offset, size)
        if page == ISR and offset == 0:
            return self._take_isr()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        page, offset = offset // PAGE, offset % PAGE
        if page == TABLE:
            self.msix.write(offset, size, value)
            return
        with self.device.lock:
            if self._gone:
                return
            if page == COMMON:
                _COMMON.write(self, offset, size, value)
            elif page == DEVICE:
                self.device.write_config(offset, size, value)
            elif page == NOTIFY:
                self.device.ring(offset // NOTIFY_MULTIPLIER)  # only where KVM has no ioeventfd for it

    def _take_isr(self) -> int:
        """Reading acknowledges (§4.1.4.5)."""
        with self._isr_lock:
            isr = self._isr
            self._isr = 0
            return isr

    def _set_isr(self, bits: int) -> None:
        with self._isr_lock:
            self._isr |= bits

    def _moved(self, address: int | None) -> None:
        """The guest maps, moves or unmaps the BAR: the doorbells go with it."""
        for doorbell, fd in self._doorbells:
            self._remove_ioeventfd(doorbell, 0, fd, None)
        self._doorbells.clear()
        if address is None:
            return
        for index, event in enumerate(self.device.doorbells):
            doorbell = address + NOTIFY * PAGE + NOTIFY_MULTIPLIER * index
            try:
                self._add_ioeventfd(doorbell, 0, event.fd, None)
            except UnikvmError:
                continue  # the guest put the BAR over another doorbell: this one is served by `write`
            self._doorbells.append((doorbell, event.fd))

    # Configuration space: the structures, and the window to them.

    def _add_structure(self, kind: int, page: int, length: int, extra: bytes = b"") -> None:
        # cap_len counts from the capability's own ID.
        body = _CAP.pack(2 + _CAP.size + len(extra), kind, 0, 0, page * PAGE, length)
        self.add_capability(PCI_CAP_ID_VENDOR, body + extra)

    def _add_window(self) -> int:
        """Registers in configuration space that reach into the BAR (§4.1.4.9)."""
        body = _CAP.pack(2 + _CAP.size + 4, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 0, 0) + bytes(4)
        # The guest writes bar, offset, length and the data.
        writable = b"\0\0\xff" + bytes(3) + b"\xff" * 12
        offset = self.add_capability(PCI_CAP_ID_VENDOR, body, writable)
        self.watch(offset + _CFG_DATA, 4, self._window_written)
        return offset

    def _window_target(self) -> tuple[int, int] | None:
        """(offset, size) in the BAR of the access that the guest asks for; None when it is not possible."""
        window = self._window
        offset, size = self.get(window + 8, 4), self.get(window + 12, 4)
        if self.config[window + 4] or size not in (1, 2, 4) or offset % size or offset + size > BAR_SIZE:
            return None
        return offset, size

    def _window_written(self) -> None:
        target = self._window_target()
        if target is not None:
            offset, size = target
            self.write(offset, size, self.get(self._window + _CFG_DATA, size))

    def config_read(self, offset: int, size: int) -> int:
        data = self._window + _CFG_DATA
        if offset < data + 4 and offset + size > data:
            target = self._window_target()
            if target is not None:
                self.set(data, 4, self.read(*target))
        return super().config_read(offset, size)

    # Common configuration (§4.1.4.3): what it has beyond `TransportRegisters`.

    def reset_registers(self) -> None:
        super().reset_registers()
        self._config_vector = VIRTIO_MSI_NO_VECTOR
        self._queue_vectors = [VIRTIO_MSI_NO_VECTOR] * len(self.device.queue_sizes)
        with self._isr_lock:
            self._isr = 0

    def read_config_vector(self) -> int:
        return self._config_vector

    def write_config_vector(self, value: int) -> None:
        self._config_vector = self._checked_vector(value)

    def read_num_queues(self) -> int:
        return len(self.device.queues)

    def read_queue_vector(self) -> int:
        return self._queue_vectors[self.queue_select] if self.selected() else VIRTIO_MSI_NO_VECTOR

    def write_queue_vector(self, value: int) -> None:
        if self.selected():
            self._queue_vectors[self.queue_select] = self._checked_vector(value)
            self.device.eventfd_changed(self.queue_select)

    def write_queue_enable(self, value: int) -> None:
        queue = self.selected()
        if queue and value == 1:
            self.device.enable_queue(queue)

    def read_queue_notify_off(self) -> int:
        return self.queue_select if self.selected() else 0

    def _checked_vector(self, value: int) -> int:
        """The driver reads back NO_VECTOR when it asked for a vector that is not there (§4.1.5.1.2)."""
        return value if value < self.msix.count else VIRTIO_MSI_NO_VECTOR

    def save(self) -> PciState:
        """The state for a snapshot; the vCPUs must be stopped."""
        from unikvm.virtio.state import PciState

        with self.device.lock:
            return PciState(
                config=self.save_config(),
                msix=self.msix.save(),
                device_feature_select=self.device_feature_select,
                driver_feature_select=self.driver_feature_select,
                queue_select=self.queue_select,
                config_vector=self._config_vector,
                queue_vectors=tuple(self._queue_vectors),
                isr=self._isr,
                device=self.device.save(),
            )

    def restore(self, state: PciState) -> None:
        """Take over `state`, with guest RAM restored already."""
        with self.device.lock:
            self.restore_config(state.config)
            self.msix.restore(state.msix)
            self.device_feature_select = state.device_feature_select
            self.driver_feature_select = state.driver_feature_select
            self.queue_select = state.queue_select
            self._config_vector = state.config_vector
            self._queue_vectors = list(state.queue_vectors)
            self._isr = state.isr
            self.device.restore(state.device)
            for queue in self.device.queues:
                if queue.active:
                    queue.interrupt()  # one that was pending is not in the state; a driver bears one too many


_COMMON: RegisterBlock[VirtioPci] = RegisterBlock(
    "virtio-pci common configuration",
    COMMON_LENGTH,
    Reg(
        "device_feature_select",
        VIRTIO_PCI_COMMON_DFSELECT,
        4,
        VirtioPci.read_device_feature_select,
        VirtioPci.write_device_feature_select,
    ),
    Reg("device_feature", VIRTIO_PCI_COMMON_DF, 4, VirtioPci.read_device_feature),
    Reg(
        "driver_feature_select",
        VIRTIO_PCI_COMMON_GFSELECT,
        4,
        VirtioPci.read_driver_feature_select,
        VirtioPci.write_driver_feature_select,
    ),
    Reg(
        "driver_feature",
        VIRTIO_PCI_COMMON_GF,
        4,
        VirtioPci.read_driver_feature,
        VirtioPci.write_driver_feature,
    ),
    Reg(
        "config_msix_vector",
        VIRTIO_PCI_COMMON_MSIX,
        2,
        VirtioPci.read_config_vector,
        VirtioPci.write_config_vector,
    ),
    Reg("num_queues", VIRTIO_PCI_COMMON_NUMQ, 2, VirtioPci.read_num_queues),
    Reg("device_status", VIRTIO_PCI_COMMON_STATUS, 1, VirtioPci.read_status, VirtioPci.write_status),
    Reg("config_generation", VIRTIO_PCI_COMMON_CFGGENERATION, 1, VirtioPci.read_config_generation),
    Reg(
        "queue_select",
        VIRTIO_PCI_COMMON_Q_SELECT,
        2,
        VirtioPci.read_queue_select,
        VirtioPci.write_queue_select,
    ),
    Reg("queue_size", VIRTIO_PCI_COMMON_Q_SIZE, 2, VirtioPci.read_queue_size, VirtioPci.write_queue_size),
    Reg(
        "queue_msix_vector",
        VIRTIO_PCI_COMMON_Q_MSIX,
        2,
        VirtioPci.read_queue_vector,
        VirtioPci.write_queue_vector,
    ),
    Reg(
        "queue_enable",
        VIRTIO_PCI_COMMON_Q_ENABLE,
        2,
        VirtioPci.read_queue_ready,
        VirtioPci.write_queue_enable,
    ),
    Reg("queue_notify_off", VIRTIO_PCI_COMMON_Q_NOFF, 2, VirtioPci.read_queue_notify_off),
    *area_registers("queue_desc", VIRTIO_PCI_COMMON_Q_DESCLO, DESC),
    *area_registers("queue_avail", VIRTIO_PCI_COMMON_Q_AVAILLO, AVAIL),
    *area_registers("queue_used", VIRTIO_PCI_COMMON_Q_USEDLO, USED),
)
