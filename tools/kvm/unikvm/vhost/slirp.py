# SPDX-License-Identifier: GPL-2.0-only
"""slirp4netns, the user-mode network where there is no passt: the same network, by TCP and UDP of its own.

It speaks over a SOCK_SEQPACKET socket (what it calls BESS), one frame a message, and answers ARP, DHCP and, at
10.0.2.3, DNS. It listens at a path, and at another one for what it is told of ports.
"""

from __future__ import annotations

import os
import time
from _socket import AF_UNIX, SHUT_WR, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM

from unikvm.errors import CannotRun
from unikvm.sys.process import find_program, spawn
from unikvm.sys.runtime import directory
from unikvm.sys.unixsocket import Socket
from unikvm.vhost.backend import Program
from unikvm.vhost.forward import GUEST, LOOPBACK, MTU, check_free, parse_forward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "slirp4netns"
_START_SECONDS = 5.0  # for it to listen
_NAP = 0.002
_ANSWER_SECONDS = 5.0
_LONGEST = 4096  # bytes of an answer


class Slirp(Program):
    """slirp4netns, with `forwards` (see `parse_forward`) from the host's ports."""

    def __init__(self, binary: str, forwards: Sequence[str]) -> None:
        self._forwards = tuple(forwards)
        place = f"{directory('slirp')}/{os.getpid()}-{os.urandom(4).hex()}"
        self._line, self._control = f"{place}.line", f"{place}.control"
        argv = arguments(binary, self._line, self._control if forwards else "")
        # It does not end with its connection.
        super().__init__("the user network", lambda _fd: argv, again=True, ends_alone=False)

    def _start(self) -> None:
        # Connected at once: until then it is two processes, of which one would not end with us.
        self._process = spawn(self._argv(-1))
        try:
            self._socket = self._dial(self._line, SOCK_SEQPACKET)
            for text in self._forwards:
                self._forward(text)
        except BaseException:
            self.stop()
            raise
        finally:
            for path in (self._line, self._control):
                try:
                    os.unlink(path)
                except OSError:
                    pass  # it did not come that far

    def _dial(self, path: str, kind: int) -> Socket:
        end = time.monotonic() + _START_SECONDS
        sock = Socket(AF_UNIX, kind | SOCK_CLOEXEC)
        while True:
            try:
                sock.connect(path)
            except OSError as error:
                if self.ended or time.monotonic() > end:
                    sock.close()
                    raise CannotRun(f"{PROGRAM} does not start: {self.why() or error.strerror}") from None
                time.sleep(_NAP)
            else:
                return sock

    def _forward(self, text: str) -> None:
        answer = b""
        sock = self._dial(self._control, SOCK_STREAM)
        try:
            sock.settimeout(_ANSWER_SECONDS)
            sock.sendall(forward_request(text))
            sock.shutdown(SHUT_WR)
            while len(answer) < _LONGEST and (more := sock.recv(_LONGEST)):
                answer += more
        except OSError as error:
            raise CannotRun(f"--forward {text}: {PROGRAM}: {error.strerror or error}") from None
        finally:
            sock.close()
        if b'"return"' not in answer:
            raise CannotRun(f"--forward {text}: {PROGRAM}: {answer.decode('ascii', 'replace').strip()}")


def arguments(binary: str, line: str, control: str) -> list[str]:
    """Its command line: the frames go through the socket `line`; `control`: for forwarded ports, empty without any."""
    argv = [binary, "--target-type=bess", f"--mtu={MTU}", "--enable-seccomp"]
    if os.geteuid() == 0:
        argv.append("--enable-sandbox")  # without files and capabilities, but for low ports
    if control:
        argv.append(f"--api-socket={control}")
    return [*argv, line]


def forward_request(text: str) -> bytes:
    """What tells it to open a port."""
    udp, host, guest = parse_forward(text)
    ports = f'"host_addr":"{LOOPBACK}","host_port":{host},"guest_addr":"{GUEST}","guest_port":{guest}'
    return f'{{"execute":"add_hostfwd","arguments":{{"proto":"{"udp" if udp else "tcp"}",{ports}}}}}'.encode()


def serve(forwards: Sequence[str] = ()) -> Slirp | None:
    """Start it, or None where this host has none. CannotRun where a port is another one's."""
    binary = find_program(PROGRAM)
    if not binary:
        return None
    for text in forwards:
        check_free(text)
    return Slirp(binary, forwards)
