# SPDX-License-Identifier: GPL-2.0-only
"""Console and named byte streams (virtio 1.2 §5.3), with VIRTIO_CONSOLE_F_MULTIPORT and F_SIZE.

Port 0 is the console (hvc0 in Linux), ports 1..n have names. Their byte streams are in port.py; this is the
device: queues, the control protocol, the window's size.
"""

from __future__ import annotations

from struct import Struct

from unikvm.errors import GuestFault, UnikvmError
from unikvm.lean import deque
from unikvm.uapi.virtio import (
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    VIRTIO_CONSOLE_RESIZE,
    VIRTIO_ID_CONSOLE,
)
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.port import Port
from unikvm.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.memory import GuestMemory
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import Transport
    from unikvm.virtio.state import ConsoleState, DeviceState

PORT_QUEUE_SIZE = 64  # Linux fills the receive queue with a page each
CONTROL_QUEUE_SIZE = 32
CONTROL_RECEIVE = 2  # queue numbers (§5.3.2): port 0 has 0 and 1, port n has 2n + 2 and 2n + 3
CONTROL_TRANSMIT = 3

_CONFIG = Struct("<HHII")  # struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr
_CONTROL = Struct("<IHH")  # struct virtio_console_control: id, event, value
_RESIZE = Struct("<HH")  # struct virtio_console_resize (§5.3.6.2): cols, rows


class Console(VirtioDevice):
    """virtio-console with a console port, or without one (None), and any number of named ones."""

    name = "console"
    device_id = VIRTIO_ID_CONSOLE
    features = 1 << VIRTIO_CONSOLE_F_SIZE | 1 << VIRTIO_CONSOLE_F_MULTIPORT

    def __init__(self, console: Port | None, ports: Sequence[Port] = (), *, columns: int = 0, rows: int = 0) -> None:
        """`columns` and `rows`: the window's size; 0 where it is not known."""
        super().__init__()
        if console is not None:
            console.keep_open = True
        self.ports: list[Port | None] = [console, *ports]
        control = (CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE)
        self.queue_sizes = (PORT_QUEUE_SIZE, PORT_QUEUE_SIZE, *control) + (PORT_QUEUE_SIZE,) * 2 * len(ports)
        self._control: deque[bytes] = deque()
        self._control_limit = 64 + 8 * len(self.ports)
        self._set_size(columns, rows)

    def connect(self, memory: GuestMemory, loop: EventLoop, transport: Transport) -> None:
        super().connect(memory, loop, transport)
        for number, port in enumerate(self.ports):
            if port is not None:
                first = 2 * number + 2 if number else 0
                port.connect(self, loop, number, self.queues[first], self.queues[first + 1])

    def close(self) -> None:
        super().close()
        for port in self.ports:
            if port is not None:
                port.close()

    def resize(self, columns: int, rows: int) -> None:
        """The window has a new size. From any thread."""

        def apply() -> None:
            self._set_size(columns, rows)
            if self.negotiated(VIRTIO_CONSOLE_F_MULTIPORT):
                self._send_size()
            else:
                self.config_changed()

        self.loop.call_soon(lambda: self.serve(apply))

    def activated(self) -> None:
        port = self.ports[0]
        if not self.negotiated(VIRTIO_CONSOLE_F_MULTIPORT) and port is not None:
            port.ready = True
            port.set_guest_open(True)

    def process(self, queue: Queue) -> None:
        if queue.index == CONTROL_RECEIVE:
            self._flush_control()
        elif queue.index == CONTROL_TRANSMIT:
            self._take_control(queue)
        else:
            port = self._port_of(queue)
            if port is not None:
                if queue.index & 1:
                    port.transmit()
                else:
                    port.refill()

    def release(self, queue: Queue) -> None:
        port = self._port_of(queue)
        if port is not None:
            port.release(queue)

    def stopped(self) -> None:
        self._control.clear()
        for port in self.ports:
            if port is not None:
                port.reset()

    def held(self, queue: Queue) -> int:
        port = self._port_of(queue)
        return port.held(queue) if port is not None else 0

    def _port_of(self, queue: Queue) -> Port | None:
        """The port that `queue` belongs to.

        None for the control queues, and for a console that is not there.
        """
        index = queue.index
        if index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            return None
        return self.ports[index // 2 - 1] if index > CONTROL_TRANSMIT else self.ports[0]

    def save_type(self) -> ConsoleState:
        from unikvm.virtio.state import ConsoleState

        return ConsoleState(
            columns=self._columns,
            rows=self._rows,
            ports=tuple(port.save() if port is not None else None for port in self.ports),
            control=tuple(self._control),
        )

    def restore_type(self, state: DeviceState) -> None:
        from unikvm.virtio.state import ConsoleState

        if not isinstance(state, ConsoleState):
            raise UnikvmError(f"{self.name}: the snapshot has another device's state")
        self._set_size(state.columns, state.rows)
        self._control.extend(state.control)
        for port, saved in zip(self.ports, state.ports, strict=True):
            if port is not None and saved is not None:
                port.restore(saved)

    # The control protocol (§5.3.6.2).

    def port_open(self, number: int, is_open: bool) -> None:
        port = self.ports[number]
        if port is not None and port.ready and self.negotiated(VIRTIO_CONSOLE_F_MULTIPORT):
            self._send(number, VIRTIO_CONSOLE_PORT_OPEN, int(is_open))

    def _take_control(self, queue: Queue) -> None:
        for chain in queue.available():
            message = chain.read(_CONTROL.size)
            queue.add_used(chain)
            if len(message) == _CONTROL.size:
                self._handle(*_CONTROL.unpack(message))

    def _handle(self, number: int, event: int, value: int) -> None:
        """One message of the driver.

        What makes no sense is ignored, as drivers ignore what they do not know.
        """
        if event == VIRTIO_CONSOLE_DEVICE_READY:
            if value == 1:
                for index, port in enumerate(self.ports):
                    if port is not None:
                        self._send(index, VIRTIO_CONSOLE_PORT_ADD, 1)
            return
        port = self.ports[number] if number < len(self.ports) else None
        if port is None:
            return
        if event == VIRTIO_CONSOLE_PORT_READY:
            port.ready = value == 1
            if port.ready:
                self._introduce(port)
        elif event == VIRTIO_CONSOLE_PORT_OPEN:
            port.set_guest_open(value == 1)

    def _introduce(self, port: Port) -> None:
        number = port.number
        if number == 0:
            self._send(number, VIRTIO_CONSOLE_CONSOLE_PORT, 1)
            self._send_size()
        if port.name:
            self._send(number, VIRTIO_CONSOLE_PORT_NAME, 1, port.name.encode())
        if port.host_open:
            self._send(number, VIRTIO_CONSOLE_PORT_OPEN, 1)

    def _send(self, number: int, event: int, value: int, payload: bytes = b"") -> None:
        if len(self._control) >= self._control_limit:
            raise GuestFault("console: the driver asks and takes no answers")
        self._control.append(_CONTROL.pack(number, event, value) + payload)
        self._flush_control()

    def _flush_control(self) -> None:
        queue = self.queues[CONTROL_RECEIVE]
        if not queue.active:
            return
        while self._control:
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            chain.write(self._control.popleft())
            queue.add_used(chain)
        queue.flush()

    def _send_size(self) -> None:
        port = self.ports[0]
        if port is not None and port.ready and self._columns and self._rows:
            # Only the last size counts: a host that resizes faster than the driver takes it does no harm.
            sizes = [message for message in self._control if _CONTROL.unpack_from(message)[1] == VIRTIO_CONSOLE_RESIZE]
            for message in sizes:
                self._control.remove(message)
            self._send(0, VIRTIO_CONSOLE_RESIZE, 0, _RESIZE.pack(self._columns, self._rows))

    def _set_size(self, columns: int, rows: int) -> None:
        self._columns = min(columns, 0xFFFF)
        self._rows = min(rows, 0xFFFF)
        self.config = _CONFIG.pack(self._columns, self._rows, len(self.ports), 0)
