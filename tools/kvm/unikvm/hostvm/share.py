# SPDX-License-Identifier: GPL-2.0-only
"""The machine's files in the host VM: one file server a directory, plugged into the running host.

virtiofsd where it is there and may have its sandbox; else 9p, which QEMU serves itself (slower, and the host kernel
needs 9p).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unikvm.errors import CannotRun
from unikvm.sys.unixsocket import Socket
from unikvm.vhost import virtiofsd
from unikvm.vhost.backend import Program

if TYPE_CHECKING:
    from unikvm.hostvm.launch import Qemu

_9P_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of the machine and the tag under which the host finds it; the root is read-only."""

    tag: str
    path: str
    readonly: bool


def mounts(shares: tuple[str, ...]) -> list[Mount]:
    """The root and the shares. CannotRun where a share is no directory."""
    for path in shares:
        if not os.path.isdir(path):
            raise CannotRun(f"the share {path} is not a directory")
    return [
        Mount("root", "/", True),
        *(Mount(f"share{number}", os.path.realpath(path), False) for number, path in enumerate(shares)),
    ]


class Virtiofs:
    """Serves mounts by one virtiofsd each."""

    fstype = "virtiofs"
    modules: tuple[str, ...] = ("virtiofs",)
    options = ""

    def __init__(self, binary: str, wanted: list[Mount]) -> None:
        self.root_flags = virtiofsd.mount_flags()
        self._servers: list[tuple[Mount, Socket, Program]] = []
        try:
            for mount in wanted:
                server = virtiofsd.serve(binary, mount.path, readonly=mount.readonly)
                self._servers.append((mount, server.open(), server))
        except BaseException:
            self.close()
            raise

    def qemu_args(self) -> list[str]:
        return []

    def plug(self, qemu: Qemu) -> None:
        """Hot-plug the devices. QMP hands QEMU the connections."""
        for mount, client, server in self._servers:
            if server.ended:
                raise CannotRun(f"virtiofsd ended: {server.why()}")
            qemu.qmp.execute("getfd", {"fdname": mount.tag}, fds=[client.fileno()])
            address = {"type": "fd", "data": {"str": mount.tag}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            qemu.qmp.execute("chardev-add", {"id": mount.tag, "backend": backend})
            device = {"driver": "vhost-user-fs-pci", "id": f"fs-{mount.tag}", "chardev": mount.tag, "tag": mount.tag}
            qemu.qmp.execute("device_add", {**device, "queue-size": 1024})

    def failure(self) -> str:
        """Why a mount cannot work any more: which server ended, or an empty string."""
        for mount, _client, server in self._servers:
            if server.ended:
                return f"the file server of {mount.path} ended: {server.why()}"
        return ""

    @property
    def pidfds(self) -> list[int]:
        return [server.pidfd for _mount, _client, server in self._servers]

    def close(self) -> None:
        for _mount, client, _server in self._servers:
            client.close()
        for _mount, _client, server in self._servers:
            server.close()  # it ends when the connection does, and reaps its own child
        self._servers = []


class NineP:
    """Serves mounts by QEMU itself."""

    fstype = "9p"
    modules: tuple[str, ...] = ("9p", "9pnet_virtio")
    options = _9P_OPTIONS

    def __init__(self, wanted: list[Mount]) -> None:
        self.root_flags = virtiofsd.mount_flags()
        self._wanted = wanted

    def qemu_args(self) -> list[str]:
        """-fsdev cannot be plugged, only its device can; there is no device here yet, so a snapshot is possible."""
        args: list[str] = []
        for mount in self._wanted:
            readonly = "on" if mount.readonly else "off"
            path = mount.path.replace(",", ",,")  # QEMU's escape
            args.append("-fsdev")
            args.append(f"local,id={mount.tag},path={path},security_model=none,multidevs=remap,readonly={readonly}")
        return args

    def plug(self, qemu: Qemu) -> None:
        for mount in self._wanted:
            qemu.qmp.execute(
                "device_add",
                {"driver": "virtio-9p-pci", "id": f"fs-{mount.tag}", "fsdev": mount.tag, "mount_tag": mount.tag},
            )

    def failure(self) -> str:
        return ""

    @property
    def pidfds(self) -> list[int]:
        return []

    def close(self) -> None:
        pass


def choose_server(wanted: list[Mount]) -> tuple[Virtiofs | NineP, str]:
    """The file server for `wanted`, started, and a line for the user where it is not the fast one."""
    binary = virtiofsd.find()
    if not binary:
        return NineP(wanted), "no virtiofsd on this machine: the host VM's root goes by 9p, which is slower"
    try:
        return Virtiofs(binary, wanted), ""
    except CannotRun as error:
        return NineP(wanted), f"virtiofsd cannot be used ({error.message}): the root goes by 9p, which is slower"
