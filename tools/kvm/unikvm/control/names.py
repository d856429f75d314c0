# SPDX-License-Identifier: GPL-2.0-only
"""Running guests by name: a socket for each in a directory of this user's."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from fcntl import LOCK_EX, flock

from unikvm.errors import CannotRun
from unikvm.sys import runtime
from unikvm.sys.unixsocket import Socket

BACKLOG = 64


def _path(name: str) -> str:
    return f"{runtime.directory('guests')}/{name}"


class _Lock:
    """Between looking at a name and changing it nobody else does."""

    def __enter__(self) -> None:
        self._fd = os.open(runtime.directory("guests"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flock(self._fd, LOCK_EX)

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


class Claim:
    """A name that is this process's until `close`: `listener` is the socket that others find behind it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listener = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            with _Lock():
                if _is_alive(name):
                    raise CannotRun(f"a guest with the name {name} runs already", hint="another --name")
                _forget(name)
                self.listener.bind(_path(name))
                self.listener.listen(BACKLOG)
        except OSError as error:
            self.listener.close()
            raise CannotRun(f"{_path(name)}: {error.strerror}") from None
        except BaseException:
            self.listener.close()
            raise
        self.listener.setblocking(False)
        self._held = True

    def close(self) -> None:
        """Give the name up. Twice is once."""
        if self._held:
            self._held = False
            _forget(self.name)
            self.listener.close()


def claim(name: str, *, exact: bool) -> Claim:
    """The name, or, unless it has to be `exact`, the first free one of NAME, NAME-2, NAME-3 …; CannotRun."""
    if not runtime.is_name(name):
        raise CannotRun(f"--name {name}: no name of a guest", hint="letters, digits, - and _, 32 at most")
    number = 1
    while True:
        try:
            return Claim(name if number == 1 else f"{name}-{number}")
        except CannotRun:
            if exact or number > 1000:
                raise
        number += 1


def _forget(name: str) -> None:
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        pass


def connect(name: str) -> Socket:
    """A connection to the guest `name`. CannotRun where there is none: says which there are."""
    sock = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        if not runtime.is_name(name):
            raise FileNotFoundError(name)
        sock.connect(_path(name))
    except OSError:
        sock.close()
        others = running()
        hint = f"running: {', '.join(others)}" if others else "none runs; `unikvm run -n NAME` starts one"
        raise CannotRun(f"no guest {name!r} runs", hint=hint) from None
    return sock


def _is_alive(name: str) -> bool:
    sock = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        sock.connect(_path(name))
    except BlockingIOError:
        return True  # it has its hands full
    except OSError:
        return False
    finally:
        sock.close()
    return True


def running() -> list[str]:
    """The names of the guests that run, sorted. Those of guests that were killed are cleared away."""
    found = []
    with _Lock():
        for name in sorted(os.listdir(runtime.directory("guests"))):
            if _is_alive(name):
                found.append(name)
            else:
                _forget(name)
    return found
