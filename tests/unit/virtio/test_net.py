# SPDX-License-Identifier: GPL-2.0-only
"""The network device: frames both ways, their bounds, and a back end that misbehaves or ends."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from socket import AF_UNIX, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, socketpair
from socket import socket as PythonSocket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unikvm.errors import CannotRun
from unikvm.uapi.virtio import VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1
from unikvm.uapi.virtio_net import VIRTIO_NET_F_MRG_RXBUF
from unikvm.vhost import forward, passt
from unikvm.virtio.frames import MAX_FRAME, FrameStream
from unikvm.virtio.net import MAC, RECEIVE, TRANSMIT, Net
from unit.virtio.driver import Bench, bench

MTU = 9000
HEADER = bytes(12)


class Peer:
    """A back end whose other end is the test's."""

    name = "the peer"
    again = False

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        self.ours.settimeout(5)
        self._theirs = theirs.detach()

    def plug(self) -> FrameStream:
        if self._theirs < 0:
            self._open()
        fd, self._theirs = self._theirs, -1
        return FrameStream(PythonSocket(fileno=fd))

    def why(self) -> str:
        return ""

    def stop(self) -> None:
        self.ours.close()

    def close(self) -> None:
        self.ours.close()

    def send(self, *frames: bytes) -> None:
        self.ours.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def receive(self) -> bytes:
        length = int.from_bytes(self._exactly(4), "big")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.ours.recv(count - len(data))
            assert more, "the device closed the connection"
            data += more
        return data


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def news() -> list[str]:
    return []


@pytest.fixture
def net(peer: Peer, news: list[str]) -> Iterator[Bench]:
    with bench(Net(peer, peer.plug, mtu=MTU, say=news.append)) as it:
        it.start()
        yield it


def begin_anew(it: Bench) -> None:
    """The driver starts over, in the same memory."""
    it.memory.write(0x10000, bytes(it.allocator.next - 0x10000))
    it.allocator.next = 0x10000
    it.start()


def transmit(it: Bench, *frames: bytes) -> None:
    for frame in frames:
        it.rings[TRANSMIT].add([it.buffer(HEADER + frame)], [])
    it.kick(TRANSMIT)


def frame_of(size: int) -> bytes:
    return os.urandom(size)


def test_configuration(net: Bench) -> None:
    assert net.device.config[:6] == MAC
    assert net.device.read_config(6, 2) == 1  # the link is up
    assert net.device.read_config(10, 2) == MTU


def test_transmit(net: Bench, peer: Peer) -> None:
    frames = [frame_of(size) for size in (14, 60, 1514, MTU + 14, MTU + 18)]
    transmit(net, *frames)
    assert [peer.receive() for _ in frames] == frames
    assert len(net.rings[TRANSMIT].take_used()) == len(frames)


def test_transmit_in_pieces(net: Bench, peer: Peer) -> None:
    """A header and a frame that are cut anywhere (§2.7.4.2: no assumptions about framing)."""
    frame = frame_of(100)
    message = HEADER + frame
    parts = [net.buffer(message[at : at + 7]) for at in range(0, len(message), 7)]
    net.rings[TRANSMIT].add(parts, [], indirect=True)
    net.kick(TRANSMIT)
    assert peer.receive() == frame


def test_what_is_no_frame_goes_nowhere(net: Bench, peer: Peer) -> None:
    transmit(net, bytes(13), frame_of(MTU + 19), b"", b"the next frame")
    assert peer.receive() == b"the next frame"
    assert len(net.rings[TRANSMIT].take_used()) == 4


def test_a_transmit_buffer_without_a_header(net: Bench) -> None:
    net.rings[TRANSMIT].add([net.buffer(11)], [])
    net.kick(TRANSMIT)
    assert net.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_a_full_socket_keeps_frames_and_their_order(peer: Peer) -> None:
    with bench(Net(peer, peer.plug, mtu=MTU)) as it:
        it.start()
        frames = [bytes([number]) * 9000 for number in range(60)]
        it.device._line._sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 40000)  # type: ignore[attr-defined]
        transmit(it, *frames)
        assert it.device.held(it.device.queues[TRANSMIT]) > 0
        done = 0
        for frame in frames:
            while True:
                it.settle()
                if peer.ours.recv(4, 0x02):  # MSG_PEEK
                    break
            assert peer.receive() == frame
            it.settle()
            done += len(it.rings[TRANSMIT].take_used())
        assert done == len(frames)
        transmit(it, b"fourteen bytes")  # it goes on
        assert peer.receive() == b"fourteen bytes"


def test_a_reset_forgets_what_waits(peer: Peer) -> None:
    with bench(Net(peer, peer.plug, mtu=MTU)) as it:
        it.start()
        it.device._line._sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 40000)  # type: ignore[attr-defined]
        transmit(it, *(bytes(9000) for _ in range(60)))
        it.device.write_status(0)
        assert it.device.held(it.device.queues[TRANSMIT]) == 0
        peer.ours.settimeout(0.1)
        with suppress(TimeoutError):
            while peer.receive() == bytes(9000):
                pass
        begin_anew(it)
        peer.ours.settimeout(5)
        transmit(it, b"fourteen bytes")
        assert peer.receive() == b"fourteen bytes"


def received(it: Bench, buffers: list[tuple[int, int]]) -> list[bytes]:
    """The frames in the used buffers, put together by num_buffers."""
    used = it.rings[RECEIVE].take_used()
    parts = [it.memory.read(buffers[head][0], length) for head, length in used]
    frames = []
    while parts:
        count = int.from_bytes(parts[0][10:12], "little")
        assert parts[0][:10] == bytes(10)
        frames.append(b"".join(parts[:count])[12:])
        del parts[:count]
    return frames


def offer(it: Bench, count: int, size: int) -> list[tuple[int, int]]:
    buffers = [it.buffer(size) for _ in range(count)]
    for buffer in buffers:
        it.rings[RECEIVE].add([], [buffer])
    it.kick(RECEIVE)
    return buffers


def test_receive_merges_buffers(net: Bench, peer: Peer) -> None:
    buffers = offer(net, 20, 1500)
    frames = [frame_of(size) for size in (14, 1488, 1489, MTU + 14)]
    peer.send(*frames)
    net.settle()
    assert received(net, buffers) == frames


def test_receive_waits_for_buffers(net: Bench, peer: Peer) -> None:
    """What does not fit stays with us, then in the socket, and comes when there is room."""
    frames = [frame_of(4000) for _ in range(20)]
    peer.send(*frames)
    net.settle()
    buffers = offer(net, 2, 1500)
    assert net.rings[RECEIVE].take_used() == []  # two of the three that the first needs
    assert net.device.held(net.device.queues[RECEIVE]) == 2
    buffers += offer(net, 100, 1500)
    net.settle()
    assert received(net, buffers) == frames


def test_without_a_queue_nothing_is_listened_to(net: Bench, peer: Peer) -> None:
    """What comes while the driver has taken the queue away waits, and does not keep the io thread busy."""
    queue = net.device.queues[RECEIVE]
    net.device.disable_queue(queue)
    peer.send(b"fourteen bytes")
    net.settle()
    assert net.device._listening == (False, False)  # type: ignore[attr-defined]
    net.rings[RECEIVE].set_up(queue)
    queue.ready = False
    net.device.enable_queue(queue)
    buffers = offer(net, 1, 1500)
    assert received(net, buffers) == [b"fourteen bytes"]


def test_without_merging_a_frame_that_is_too_large_is_dropped(peer: Peer) -> None:
    with bench(Net(peer, peer.plug, mtu=MTU)) as it:
        it.start(features=it.device.offered & ~(1 << VIRTIO_NET_F_MRG_RXBUF))
        buffers = offer(it, 3, 1526)
        peer.send(frame_of(1515), b"fourteen bytes")
        it.settle()
        assert received(it, buffers) == [b"fourteen bytes"]


def test_a_receive_buffer_without_room_for_a_header(net: Bench, peer: Peer) -> None:
    offer(net, 1, 11)
    peer.send(b"fourteen bytes")
    net.settle()
    assert net.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1, 0xFFFF_FFFF])
def test_a_back_end_that_lies_is_lost(net: Bench, peer: Peer, news: list[str], length: int) -> None:
    peer.ours.sendall(length.to_bytes(4, "big"))
    net.settle()
    assert news == [f"the peer is lost: a frame of {length} bytes"]
    assert net.device.read_config(6, 2) == 0  # the link is down
    assert net.transport.config_interrupts == 1
    assert not net.device.status & VIRTIO_CONFIG_S_NEEDS_RESET


def test_a_back_end_that_ends(net: Bench, peer: Peer, news: list[str]) -> None:
    """What is sent later goes nowhere, and the driver gets its buffers back."""
    peer.ours.close()
    net.settle()
    assert news == ["the peer is lost: it closed the connection"]
    transmit(net, *(frame_of(100) for _ in range(10)))
    assert len(net.rings[TRANSMIT].take_used()) == 10
    net.device.write_status(0)
    begin_anew(net)
    assert net.device.read_config(6, 2) == 0


def until(it: Bench, done: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end, "it does not come about"
        it.settle(1)
        time.sleep(0.005)


def test_a_back_end_that_is_started_again(peer: Peer, news: list[str]) -> None:
    """The link goes down and comes up, and frames go both ways again."""
    peer.again = True
    with bench(Net(peer, peer.plug, mtu=MTU, say=news.append)) as it:
        it.start()
        buffers = offer(it, 4, 1526)
        peer.ours.close()
        until(it, lambda: len(news) == 2)
        assert news == ["the peer is lost: it closed the connection: starting it again", "the peer is back"]
        assert it.device.read_config(6, 2) == 1
        assert it.transport.config_interrupts == 2
        frame = frame_of(100)
        transmit(it, frame)
        assert peer.receive() == frame
        peer.send(frame)
        it.settle()
        assert received(it, buffers) == [frame]


def test_a_back_end_that_ends_again_and_again(peer: Peer, news: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    peer.again = True
    with bench(Net(peer, peer.plug, mtu=MTU, say=news.append)) as it:
        it.start()

        def fails() -> FrameStream:
            raise CannotRun("the port is taken")

        monkeypatch.setattr(it.device, "_plug", fails)
        peer.ours.close()
        until(it, lambda: len(news) == 4)
        assert news[3] == "the peer is lost: the port is taken"
        assert it.device.read_config(6, 2) == 0
        transmit(it, frame_of(60))
        assert len(it.rings[TRANSMIT].take_used()) == 1


def test_a_back_end_that_ends_with_frames_waiting(peer: Peer) -> None:
    with bench(Net(peer, peer.plug, mtu=MTU)) as it:
        it.start()
        it.device._line._sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 40000)  # type: ignore[attr-defined]
        transmit(it, *(bytes(9000) for _ in range(60)))
        peer.ours.close()
        it.settle(5)
        assert len(it.rings[TRANSMIT].take_used()) == 60


def test_snapshot(net: Bench, peer: Peer) -> None:
    """Buffers that were taken for a frame are taken again by the restored device."""
    buffers = offer(net, 2, 1500)
    peer.send(frame_of(4000))
    net.settle()
    state = net.device.save()
    net.device.restore(state)
    assert net.device.queues[RECEIVE].position == 0
    buffers += offer(net, 4, 1500)
    net.settle()
    assert len(received(net, buffers)) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 40), max_size=8))
def test_any_bytes_from_either_side(chunks: list[bytes], sizes: list[int]) -> None:
    """Random streams of the peer and random buffers of the driver end in loss or a reset at most."""
    peer = Peer()
    with bench(Net(peer, peer.plug, mtu=MTU)) as it:
        it.start(features=1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF)
        for size in sizes:
            it.rings[RECEIVE].add([], [it.buffer(size)])
            it.rings[TRANSMIT].add([it.buffer(size)], [])
        it.kick(RECEIVE)
        for chunk in chunks:
            if peer.ours.fileno() >= 0:
                peer.ours.send(chunk)
            it.settle(1)
        it.kick(TRANSMIT)


@pytest.mark.skipif(shutil.which("passt") is None, reason="no passt")
def test_passt_answers() -> None:
    """The real one, at its gateway's address; then it is killed, and started again."""
    news: list[str] = []
    backend = passt.serve(["28080:80", "28081:81/udp"])
    with bench(Net(backend, lambda: FrameStream(backend.open()), mtu=forward.MTU, say=news.append)) as it:
        it.start()
        buffers = offer(it, 4, 1526)

        def ask() -> None:
            transmit(it, b"\xff" * 6 + MAC + b"\x08\x06" + request)
            frames: list[bytes] = []
            until(it, lambda: frames.extend(received(it, buffers)) or frames)  # type: ignore[func-returns-value]
            assert frames[0][6:12] == bytes.fromhex(passt.GATEWAY_MAC.replace(":", ""))

        request = bytes.fromhex("0001080006040001") + MAC + bytes([10, 0, 2, 15, *bytes(6), 10, 0, 2, 2])
        ask()
        os.kill(backend.pid, 9)
        until(it, lambda: len(news) == 2)
        assert news == ["the user network is lost: signal 9 ended it: starting it again", "the user network is back"]
        ask()
