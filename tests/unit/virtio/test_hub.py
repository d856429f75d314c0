# SPDX-License-Identifier: GPL-2.0-only
"""A network between guests: who gets which frame, and what becomes of one that is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM
from socket import socket as Socket

import pytest

from unikvm.errors import CannotRun
from unikvm.vhost.channel import BackendError
from unikvm.virtio.hub import _BATCH, _MAX_LEARNED, MTU, Hub, directory_of
from unikvm.virtio.net import TRANSMIT, Net
from unit.virtio.driver import bench

ALL = b"\xff" * 6
A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[list[Hub]]:
    made = [Hub(str(tmp_path)) for _ in range(3)]
    yield made
    for hub in made:
        hub.close()
    assert list(tmp_path.iterdir()) == []


def send(hub: Hub, to: bytes, source: bytes, content: bytes = b"content") -> bytes:
    frame = to + source + b"\x08\x00" + content
    assert hub.send([([memoryview(frame[:3]), memoryview(frame[3:])], len(frame))]) == 1
    return frame


def received(hub: Hub) -> list[bytes]:
    frames = []
    while hub.frame() is not None or hub.receive():
        frame = hub.frame()
        assert frame is not None
        frames.append(bytes(frame))
        hub.take(frame)
    return frames


def test_all_get_what_is_for_all_or_for_a_stranger(hubs: list[Hub]) -> None:
    frames = [send(hubs[0], ALL, A), send(hubs[0], C, A)]
    assert [received(hub) for hub in hubs] == [[], frames, frames]


def test_where_an_address_was_seen(hubs: list[Hub]) -> None:
    send(hubs[1], ALL, B)
    assert len(received(hubs[0])) == 1
    assert len(received(hubs[2])) == 1
    frame = send(hubs[0], B, A)
    assert received(hubs[1]) == [frame]
    assert received(hubs[2]) == []


def test_one_that_is_gone(hubs: list[Hub], tmp_path: Path) -> None:
    """Killed, it leaves its socket, which the first frame removes; those that come later go to all."""
    dead = Socket(AF_UNIX, SOCK_DGRAM)
    dead.bind(str(tmp_path / "dead"))
    dead.sendto(ALL + C + bytes(2), hubs[0]._path)
    assert len(received(hubs[0])) == 1
    dead.close()
    send(hubs[0], C, A)
    assert not (tmp_path / "dead").exists()
    assert received(hubs[1]) == []
    send(hubs[0], C, A)
    assert len(received(hubs[1])) == 1


def test_lengths(hubs: list[Hub], tmp_path: Path) -> None:
    with Socket(AF_UNIX, SOCK_DGRAM) as liar, Socket(AF_UNIX, SOCK_DGRAM) as nameless:
        liar.bind(str(tmp_path / "liar"))
        for size in (0, 13, MTU + 19, 60000):
            liar.sendto(bytes(size), hubs[0]._path)
        nameless.sendto(bytes(60), hubs[0]._path)
        liar.sendto(bytes(MTU + 18), hubs[0]._path)
        assert received(hubs[0]) == [bytes(MTU + 18)]
    os.unlink(tmp_path / "liar")


def test_a_full_socket_loses_frames(hubs: list[Hub]) -> None:
    for _ in range(5000):
        send(hubs[0], ALL, A, bytes(1000))
    assert 0 < len(received(hubs[1])) < 5000


def test_a_batch_has_an_end(hubs: list[Hub]) -> None:
    for _ in range(5):
        send(hubs[0], ALL, A)
    assert hubs[1].receive()
    assert len(hubs[1]._frames) <= _BATCH


def test_somebody_who_claims_to_be_everybody(hubs: list[Hub]) -> None:
    for number in range(_MAX_LEARNED + 100):
        send(hubs[0], ALL, b"\x02" + number.to_bytes(5, "big"))
        received(hubs[1])
        received(hubs[2])
    assert len(hubs[1]._learned) == _MAX_LEARNED


def test_through_devices(hubs: list[Hub]) -> None:
    with bench(Net(hubs[0], lambda: hubs[0], mtu=MTU)) as one, bench(Net(hubs[1], lambda: hubs[1], mtu=MTU)) as two:
        one.start()
        two.start()
        buffer = two.buffer(1526)
        two.rings[0].add([], [buffer])
        two.kick(0)
        frame = ALL + A + b"\x08\x00" + bytes(50)
        one.rings[TRANSMIT].add([one.buffer(bytes(12) + frame)], [])
        one.kick(TRANSMIT)
        two.settle()
        assert two.memory.read(buffer[0] + 12, len(frame)) == frame


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "net"
    place.mkdir()
    hub = Hub(str(place))
    os.unlink(hub._path)
    place.rmdir()
    with pytest.raises(BackendError):
        send(hub, ALL, A)
    hub.close()


def test_the_directory_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = Path(directory_of("lab"))
    assert path.stat().st_mode & 0o777 == 0o700
    assert directory_of("lab") == str(path)
    path.parent.chmod(0o755)
    with pytest.raises(CannotRun, match="open to others"):
        directory_of("lab")
    path.rmdir()
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    with pytest.raises(CannotRun, match="open to others"):
        directory_of("lab")
