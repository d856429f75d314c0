# SPDX-License-Identifier: GPL-2.0-only
"""The console device: the control protocol, and byte streams that lose nothing whatever blocks."""

from __future__ import annotations

import gc
import os
import pty
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import pack, unpack_from
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unikvm.uapi.virtio import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    VIRTIO_CONSOLE_RESIZE,
)
from unikvm.virtio.console import CONTROL_RECEIVE, CONTROL_TRANSMIT, Console
from unikvm.virtio.port import Port
from unit.virtio.driver import Bench

PAGE = 4096
T = TypeVar("T")


class Guest(Bench):
    """A driver of the console device, as Linux's."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.console = console
        self.messages: list[tuple[int, int, int, bytes]] = []
        self._given: dict[int, dict[int, tuple[int, int]]] = {}

    def probe(self, buffers: int = 16, *, multiport: bool = True) -> None:
        self.start(self.device.offered & ~(0 if multiport else 1 << VIRTIO_CONSOLE_F_MULTIPORT))
        self._given = {index: {} for index in range(len(self.rings))}
        self.give(CONTROL_RECEIVE, 16)
        for index in range(len(self.rings)):
            if not index & 1 and index != CONTROL_RECEIVE:
                self.give(index, buffers)
        if multiport:
            self.control(0, VIRTIO_CONSOLE_DEVICE_READY, 1)

    def give(self, index: int, count: int) -> None:
        """Add receive buffers of a page."""
        for _ in range(count):
            buffer = self.buffer(PAGE)
            self._given[index][self.rings[index].add([], [buffer])] = buffer
        self.kick(index)

    def take(self, index: int, *, again: bool = True) -> bytes:
        """What arrived in receive queue `index`; its buffers go back into it."""
        data = b""
        for head, length in self.rings[index].take_used():
            buffer = self._given[index].pop(head)
            data += self.memory.read(buffer[0], length)
            if again:
                self._given[index][self.rings[index].add([], [buffer])] = buffer
        if again:
            self.kick(index)
        return data

    def control(self, number: int, event: int, value: int) -> None:
        self.rings[CONTROL_TRANSMIT].add([self.buffer(pack("<IHH", number, event, value))], [])
        self.kick(CONTROL_TRANSMIT)
        self.rings[CONTROL_TRANSMIT].take_used()

    def answers(self) -> list[tuple[int, int, int, bytes]]:
        """New control messages: (port, event, value, payload)."""
        found = []
        for head, length in self.rings[CONTROL_RECEIVE].take_used():
            buffer = self._given[CONTROL_RECEIVE].pop(head)
            raw = self.memory.read(buffer[0], length)
            found.append((*unpack_from("<IHH", raw), raw[8:]))
            self._given[CONTROL_RECEIVE][self.rings[CONTROL_RECEIVE].add([], [buffer])] = buffer
        return found

    def open(self, number: int) -> None:
        self.control(number, VIRTIO_CONSOLE_PORT_READY, 1)
        self.control(number, VIRTIO_CONSOLE_PORT_OPEN, 1)
        self.answers()

    def write(self, number: int, *parts: bytes) -> None:
        index = 2 * number + 3 if number else 1
        self.rings[index].add([self.buffer(part) for part in parts], [])
        self.kick(index)

    def written(self, number: int) -> int:
        """Transmit buffers that came back."""
        return len(self.rings[2 * number + 3 if number else 1].take_used())


@contextmanager
def guest_of(*ports: Port, console: Port | None = None, columns: int = 0, rows: int = 0) -> Iterator[Guest]:
    it = Guest(Console(console, ports, columns=columns, rows=rows))
    try:
        yield it
    finally:
        it.close()


def eventually(it: Guest, look: Callable[[], T]) -> T:
    """What `look` finds, once it finds something; at most 2 seconds."""
    for _ in range(200):
        it.settle()
        found = look()
        if found:
            return found
        time.sleep(0.01)
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def test_handshake() -> None:
    with guest_of(Port("one"), Port("two"), console=Port(), columns=80, rows=25) as it:
        it.probe()
        assert it.answers() == [(number, VIRTIO_CONSOLE_PORT_ADD, 1, b"") for number in range(3)]
        it.control(0, VIRTIO_CONSOLE_PORT_READY, 1)
        assert it.answers() == [
            (0, VIRTIO_CONSOLE_CONSOLE_PORT, 1, b""),
            (0, VIRTIO_CONSOLE_RESIZE, 0, pack("<HH", 80, 25)),
            (0, VIRTIO_CONSOLE_PORT_OPEN, 1, b""),
        ]
        it.control(2, VIRTIO_CONSOLE_PORT_READY, 1)
        assert it.answers() == [
            (2, VIRTIO_CONSOLE_PORT_NAME, 1, b"two"),
            (2, VIRTIO_CONSOLE_PORT_OPEN, 1, b""),
        ]


def test_without_a_console_port() -> None:
    with guest_of(Port("one")) as it:
        it.probe()
        assert [message[0] for message in it.answers()] == [1]
        it.control(0, VIRTIO_CONSOLE_PORT_READY, 1)
        it.write(0, b"nobody")
        assert it.answers() == []


def test_resize() -> None:
    with guest_of(console=Port(), columns=80, rows=25) as it:
        it.probe()
        it.open(0)
        it.console.resize(132, 50)
        it.settle()
        assert it.answers() == [(0, VIRTIO_CONSOLE_RESIZE, 0, pack("<HH", 132, 50))]
        assert it.console.read_config(0, 4) == 132 | 50 << 16
        for columns in range(1000):  # while the driver takes nothing: only the last counts
            it.console.resize(columns, 50)
        it.settle()
        assert it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET == 0


def test_resize_without_multiport() -> None:
    with guest_of(console=Port(), columns=80, rows=25) as it:
        it.probe(multiport=False)
        it.console.resize(100, 30)
        it.settle()
        assert it.transport.config_interrupts == 1
        assert it.console.config_generation == 1


def test_single_port_without_multiport(pipe: tuple[int, int]) -> None:
    out: list[bytes] = []
    with guest_of(console=Port(source=pipe[0], sink=out.append)) as it:
        it.probe(multiport=False)
        it.write(0, b"hel", b"lo")
        os.write(pipe[1], b"input")
        it.settle()
        assert (out, it.take(0)) == ([b"hello"], b"input")


def test_input_waits_for_the_guest_to_open(pipe: tuple[int, int]) -> None:
    with guest_of(Port("one", source=pipe[0])) as it:
        os.write(pipe[1], b"early")
        it.probe()
        it.settle()
        assert it.take(4) == b""
        it.open(1)
        it.settle()
        assert it.take(4) == b"early"


def test_input_waits_for_buffers(pipe: tuple[int, int]) -> None:
    data = os.urandom(5 * PAGE)
    with guest_of(Port("one", source=pipe[0])) as it:
        it.probe(buffers=0)
        it.open(1)
        os.write(pipe[1], data)
        it.settle()
        assert it.rings[4].take_used() == []
        received = b""
        for _ in range(5):
            it.give(4, 1)
            received += it.take(4, again=False)
        assert received == data


def test_end_of_input(pipe: tuple[int, int]) -> None:
    with guest_of(Port("one", source=pipe[0])) as it:
        it.probe(buffers=1)
        it.open(1)
        os.write(pipe[1], b"last")
        os.close(pipe[1])
        it.settle()
        assert it.answers() == []  # no buffer: the end was not seen yet
        assert it.take(4) == b"last"
        it.settle()
        assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]
        it.control(1, VIRTIO_CONSOLE_PORT_READY, 1)
        assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_NAME, 1, b"one")]


def test_end_of_input_does_not_close_the_console(pipe: tuple[int, int]) -> None:
    out: list[bytes] = []
    with guest_of(console=Port(source=pipe[0], sink=out.append)) as it:
        it.probe()
        it.open(0)
        os.close(pipe[1])
        it.settle()
        assert it.answers() == []
        it.write(0, b"still there")
        assert out == [b"still there"]


def test_input_from_a_file(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "input").write_bytes(data)
    with (tmp_path / "input").open("rb") as file, guest_of(Port("one", source=file.fileno())) as it:
        it.probe()
        it.open(1)
        received = b""
        while len(received) < len(data):
            part = it.take(4)
            assert part
            received += part
        assert received == data
        assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]


def test_input_from_a_terminal_that_hangs_up() -> None:
    master, slave = pty.openpty()
    with guest_of(Port("one", source=slave)) as it:
        it.probe()
        it.open(1)
        os.write(master, b"line\n")
        # A terminal passes bytes and hang-ups on in its own time.
        assert eventually(it, lambda: it.take(4)) == b"line\n"
        os.close(master)
        assert eventually(it, it.answers) == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]
    os.close(slave)


def test_transform(pipe: tuple[int, int]) -> None:
    with guest_of(Port("one", source=pipe[0], transform=lambda data: data.replace(b"x", b"longer"))) as it:
        it.probe(buffers=1)
        it.open(1)
        os.write(pipe[1], b"x" * 1000)
        it.settle()
        assert it.take(4) + it.take(4) == b"longer" * 1000


def test_counts_of_both_directions(pipe: tuple[int, int]) -> None:
    sent: list[int] = []
    ends: list[int] = []
    source = os.pipe()
    port = Port("one", source=source[0], sink=pipe[1], on_sent=sent.append, on_source_end=ends.append)
    with guest_of(port) as it:
        it.probe()
        it.open(1)
        it.write(1, b"abc", b"de")
        it.write(1, bytes(100_000))
        assert sent == [5]
        while len(os.read(pipe[0], 65536)) == 65536:
            it.settle()
        it.settle()
        assert sent == [5, 100_000]
        port.send(b"123")
        it.settle()
        os.write(source[1], b"4567")
        os.close(source[1])
        it.settle()
        assert ends == [7]
        assert it.take(4) == b"1234567"
    os.close(source[0])


def test_send_and_hang_up(pipe: tuple[int, int]) -> None:
    with guest_of(Port("one", source=pipe[0])) as it:
        port = it.console.ports[1]
        assert port is not None
        it.probe(buffers=1)
        it.open(1)
        port.send(b"a" * PAGE + b"b")
        port.hang_up()
        it.settle()
        assert it.answers() == []
        assert it.take(4) + it.take(4) == b"a" * PAGE + b"b"
        assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]


def test_output_to_a_pipe_that_is_full(pipe: tuple[int, int]) -> None:
    data = os.urandom(300_000)
    with guest_of(Port("one", sink=pipe[1])) as it:
        it.probe()
        it.open(1)
        it.write(1, data[:100_000], data[100_000:150_000])
        it.write(1, data[150_000:])
        assert it.written(1) == 0
        received = b""
        while len(received) < len(data):
            received += os.read(pipe[0], 50_000)
            it.settle()
        assert received == data
        assert it.written(1) == 2
        assert os.get_blocking(pipe[1])  # the caller's own end is as it was


def test_close_comes_after_the_output(pipe: tuple[int, int]) -> None:
    events: list[bool] = []
    with guest_of(Port("one", sink=pipe[1], on_guest_open=events.append)) as it:
        it.probe()
        it.open(1)
        it.write(1, bytes(100_000))
        it.control(1, VIRTIO_CONSOLE_PORT_OPEN, 0)
        assert events == [True]
        os.read(pipe[0], 100_000)
        it.settle()
        os.read(pipe[0], 100_000)
        it.settle()
        assert events == [True, False]


def test_close_message_does_not_overtake_the_output() -> None:
    order: list[object] = []
    with guest_of(Port("one", sink=order.append, on_guest_open=order.append)) as it:
        it.probe()
        it.open(1)
        it.rings[5].add([it.buffer(b"data")], [])  # its doorbell comes after the control queue's
        it.control(1, VIRTIO_CONSOLE_PORT_OPEN, 0)
        assert order == [True, b"data", False]


def test_output_that_nobody_reads(pipe: tuple[int, int]) -> None:
    lost: list[OSError] = []
    with guest_of(Port("one", sink=pipe[1], on_sink_lost=lost.append)) as it:
        it.probe()
        it.open(1)
        os.close(pipe[0])
        it.write(1, b"to nobody")
        it.write(1, b"more")
        assert it.written(1) == 2
        assert [type(error) for error in lost] == [BrokenPipeError]
        assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]


def test_reader_goes_away_while_the_output_waits(pipe: tuple[int, int]) -> None:
    lost: list[OSError] = []
    with guest_of(Port("one", sink=pipe[1], on_sink_lost=lost.append)) as it:
        it.probe()
        it.open(1)
        it.write(1, bytes(100_000))
        assert it.written(1) == 0
        os.close(pipe[0])
        it.settle()
        assert (it.written(1), len(lost)) == (1, 1)


def test_output_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file, guest_of(Port("one", sink=file.fileno())) as it:
        file.write(b"before ")
        it.probe()
        it.open(1)
        it.write(1, b"guest ")
        file.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before guest after"


def test_one_socket_for_both_directions() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with guest_of(Port("ctl", source=theirs.fileno(), sink=theirs.fileno())) as it:
            it.probe()
            it.open(1)
            ours.send(b"question")
            it.settle()
            assert it.take(4) == b"question"
            it.write(1, b"answer")
            assert ours.recv(100) == b"answer"
            ours.shutdown(socket.SHUT_WR)
            it.settle()
            assert it.answers() == [(1, VIRTIO_CONSOLE_PORT_OPEN, 0, b"")]
        assert theirs.getblocking()


def test_reset_and_another_driver(pipe: tuple[int, int]) -> None:
    events: list[bool] = []
    with guest_of(Port("one", source=pipe[0], on_guest_open=events.append)) as it:
        it.probe()
        it.open(1)
        it.device.write_status(0)
        assert events == [True, False]
        os.write(pipe[1], b"for the next")
        it.settle()
        it.allocator.next = 0x20_0000
        it.probe()
        it.open(1)
        it.settle()
        assert it.take(4) == b"for the next"


def test_save_and_restore_in_the_middle(pipe: tuple[int, int]) -> None:
    """Held receive chains and a half-written transmit chain survive, byte for byte."""
    data = os.urandom(100_000)
    source = os.pipe()
    with guest_of(Port("one", source=source[0], sink=pipe[1])) as it:
        it.probe()
        it.open(1)
        os.write(source[1], b"first")
        it.write(1, data)
        state = it.device.save()
        twin = Console(None, [Port("one", source=source[0], sink=pipe[1])])
        twin.connect(it.memory, it.loop, it.transport)
        it.device.reset()
        twin.restore(state)
        assert twin.save() == state
        received = b""
        while len(received) < len(data):
            received += os.read(pipe[0], 65536)
            it.settle()
        assert received == data
        os.write(source[1], b"second")
        it.settle()
        assert it.take(4) == b"firstsecond"
        twin.close()
    for fd in source:
        os.close(fd)


def test_driver_that_takes_no_answers() -> None:
    with guest_of(Port("one"), console=Port()) as it:
        it.start()
        for _ in range(300):
            it.control(0, VIRTIO_CONSOLE_DEVICE_READY, 1)
        assert it.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_descriptors_are_given_back(pipe: tuple[int, int]) -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    with guest_of(Port("one", source=pipe[0], sink=pipe[1])) as it:
        it.probe()
    del it
    gc.collect()  # the mapping of guest memory ends with its last view
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("event_idx", [True, False])
def test_many_bytes_both_ways(event_idx: bool) -> None:
    """A stream through a small pipe each way, with what blocks changing all the time."""
    data = os.urandom(1 << 20)
    source, sink = os.pipe(), os.pipe()
    with guest_of(Port("one", source=source[0], sink=sink[1])) as it:
        features = it.device.offered if event_idx else it.device.offered & ~(1 << 29)
        it.device.features = features & 3
        it.probe()
        it.open(1)
        sent = got = 0
        base = it.allocator.next
        os.set_blocking(source[1], False)
        os.set_blocking(sink[0], False)
        echo = bytearray()
        received = bytearray()
        while got < len(data):
            with suppress(BlockingIOError):
                sent += os.write(source[1], data[sent : sent + 50_000])
            it.settle(1)
            part = it.take(4)
            received += part
            if part:
                if it.allocator.next > 0x38_0000:
                    it.allocator.next = base
                it.write(1, part[: len(part) // 2], part[len(part) // 2 :])
            with suppress(BlockingIOError):
                echo += os.read(sink[0], 100_000)
                got = len(echo)
            it.rings[5].take_used()
        assert bytes(received) == data
        assert bytes(echo) == data
    for fd in (*source, *sink):
        os.close(fd)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.one_of(
                st.binary(max_size=20),
                st.builds(
                    lambda *fields: pack("<IHH", *fields),
                    st.one_of(st.integers(0, 4), st.integers(0, 0xFFFF_FFFF)),
                    st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
                    st.integers(0, 2),
                ),
            ),
            st.lists(st.integers(0, 40), max_size=3),
        ),
        max_size=30,
    )
)
def test_random_traffic(traffic: list[tuple[int, bytes, list[int]]]) -> None:
    """Any chain in any queue, any control message.

    Nothing is raised, nothing is lost that was sent to a sink.
    """
    out: list[bytes] = []
    with guest_of(Port("one", sink=out.append), Port("two"), console=Port()) as it:
        it.start()
        for index, readable, writable in traffic:
            it.rings[index].add([it.buffer(readable)], [it.buffer(size) for size in writable], indirect=True)
            it.kick(index)
