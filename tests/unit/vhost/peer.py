# SPDX-License-Identifier: GPL-2.0-only
"""A back end for tests: speaks vhost-user from a thread, well or badly, and serves no request by itself.

Also the smallest qcow2 image there is.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from unikvm.uapi.virtio import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from unikvm.vhost import messages as m

FEATURES = (
    1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << m.F_PROTOCOL_FEATURES
)
PROTOCOL = 1 << m.PROTOCOL_F_MQ | 1 << m.PROTOCOL_F_REPLY_ACK

Answer = Callable[["Peer", bytes, list[int]], "bytes | None"]


class Peer:
    """`features` and `protocol` are on offer; `answers` replace what a request would be answered with: a payload, or
    None for a closed connection. What came is in `log`: (request, payload), and descriptors by (request, index).
    """

    def __init__(self, *, features: int = FEATURES, protocol: int = PROTOCOL, again: bool = False) -> None:
        self.name = "the peer"
        self.again = again
        self.features = features
        self.protocol = protocol
        self.queues = 8
        self.config = b""
        self.answers: dict[int, Answer] = {}
        self.raw: dict[int, bytes] = {}  # sent as they are, instead of an answer
        self.log: list[tuple[int, bytes]] = []
        self.fds: dict[tuple[int, int], int] = {}
        self.bases: dict[int, int] = {}
        self.inflight = -1
        self.stopped = 0
        self._ours: socket.socket | None = None

    # unikvm.vhost.backend.Backend

    def open(self) -> socket.socket:
        theirs, self._ours = socket.socketpair()
        threading.Thread(target=self._serve, args=(self._ours,), name="peer", daemon=True).start()
        return theirs

    def why(self) -> str:
        return ""

    def stop(self) -> None:
        self.stopped += 1
        self.hang_up()

    def close(self) -> None:
        self.hang_up()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def hang_up(self) -> None:
        """Close the connection, as a process that dies does."""
        if self._ours is not None:
            try:
                self._ours.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def say(self, data: bytes) -> None:
        """Send what nobody asked for."""
        assert self._ours is not None
        self._ours.sendall(data)

    def own(self) -> socket.socket:
        """The connection that it was given for its own requests (SET_BACKEND_REQ_FD)."""
        return socket.socket(fileno=os.dup(self.fds[m.SET_BACKEND_REQ_FD, 0]))

    def names(self) -> list[str]:
        """The requests that came."""
        return [m.NAMES[request] for request, _ in self.log]

    # The thread

    def _serve(self, sock: socket.socket) -> None:
        try:
            while self._one(sock):
                pass
        except OSError:
            pass
        sock.close()

    def _one(self, sock: socket.socket) -> bool:
        header, ancillary, _, _ = sock.recvmsg(m.HEADER.size, socket.CMSG_SPACE(8 * 4))
        if len(header) < m.HEADER.size:
            return False
        request, flags, size = m.HEADER.unpack(header)
        payload = sock.recv(size, socket.MSG_WAITALL) if size else b""
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        self._keep(request, payload, list(fds))
        self.log.append((request, payload))
        if request in self.raw:
            sock.sendall(self.raw[request])
            return True
        answer: bytes | None = b""
        out: list[int] = []
        if request in self.answers:
            answer = self.answers[request](self, payload, out)
        else:
            answer = self._answer(request, payload, out)
        if answer is None:
            return False
        if not answer and flags & m.NEED_REPLY:
            answer = bytes(8)
        if answer:
            message = m.HEADER.pack(request, m.VERSION | m.REPLY, len(answer)) + answer
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", out))] if out else []
            sock.sendmsg([message], rights)
        return True

    def _keep(self, request: int, payload: bytes, fds: list[int]) -> None:
        first = payload[0] if payload else 0
        for number, fd in enumerate(fds):
            index = first if len(fds) == 1 else number
            old = self.fds.pop((request, index), None)
            if old is not None:
                os.close(old)
            self.fds[request, index] = fd

    def _answer(self, request: int, payload: bytes, fds: list[int]) -> bytes:
        if request == m.GET_FEATURES:
            return m.U64.pack(self.features)
        if request == m.GET_PROTOCOL_FEATURES:
            return m.U64.pack(self.protocol)
        if request == m.GET_QUEUE_NUM:
            return m.U64.pack(self.queues)
        if request == m.SET_VRING_BASE:
            index, base = m.VRING_STATE.unpack(payload)
            self.bases[index] = base
        if request == m.GET_VRING_BASE:
            index, _ = m.VRING_STATE.unpack(payload)
            return m.VRING_STATE.pack(index, self.bases.get(index, 0))
        if request == m.GET_CONFIG:
            return payload[: m.CONFIG_HEADER.size] + self.config
        if request == m.GET_INFLIGHT_FD:
            self.inflight = os.memfd_create("inflight")
            os.ftruncate(self.inflight, 4096)
            fds.append(self.inflight)
            _, _, queues, entries = m.INFLIGHT.unpack(payload)
            return m.INFLIGHT.pack(4096, 0, queues, entries)
        return b""

    def memory(self, gpa: int, size: int) -> bytes:
        """What a back end finds at a guest address: through the table and the descriptors that it was given."""
        table = next(payload for request, payload in reversed(self.log) if request == m.SET_MEM_TABLE)
        count, _ = m.MEMORY_HEADER.unpack_from(table)
        for number in range(count):
            start, length, _, offset = m.MEMORY_REGION.unpack_from(table, m.MEMORY_HEADER.size + 32 * number)
            if start <= gpa and gpa + size <= start + length:
                with mmap.mmap(self.fds[m.SET_MEM_TABLE, number], offset + length) as mapping:
                    return mapping[offset + gpa - start : offset + gpa - start + size]
        raise AssertionError(f"{gpa:#x} was not handed over")


def make_qcow2(path: Path, size: int) -> None:
    """An empty qcow2 image of `size` bytes (at most 512 MiB): header, reference counts, and an empty L1 table."""
    cluster = 1 << 16
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, 3 * cluster, cluster, 1, 0, 0
    )  # magic, version, backing, -, cluster bits, size, crypt, L1 entries, L1, reference table, its clusters, snapshots
    table = struct.pack(">Q", 2 * cluster)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    path.write_bytes(b"".join(part.ljust(cluster, b"\0") for part in (header, table, counts, b"")))
