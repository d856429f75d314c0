# SPDX-License-Identifier: GPL-2.0-only
"""The machine's files in the host VM: one file server a directory, plugged into the running host.

virtiofsd where it is there and may have its sandbox; else 9p, which QEMU serves itself (slower, and the host kernel
needs 9p).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unikvm.errors import CannotRun
from unikvm.sys.process import Process, become_namespace_root, readonly_root, spawn

if TYPE_CHECKING:
    from unikvm.hostvm.launch import Qemu

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/libexec/qemu/virtiofsd")
_FAREWELL = 0.5  # seconds
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


def find_virtiofsd() -> str:
    """The path of virtiofsd, or an empty string."""
    for path in _VIRTIOFSD:
        if os.access(path, os.X_OK):
            return path
    for directory in os.environ.get("PATH", "").split(":"):
        if directory and os.access(f"{directory}/virtiofsd", os.X_OK):
            return f"{directory}/virtiofsd"
    return ""


def _is_c_virtiofsd(path: str) -> bool:
    """QEMU's own virtiofsd in C (until 7.2) takes -o options; its successor in Rust has long ones."""
    process = spawn([path, "--help"], prepare=become_namespace_root)  # as a user it does not even give help
    try:
        process.wait(10)
        return "-o source=PATH" in os.pread(process.log, 65536, 0).decode("utf-8", "replace")
    finally:
        process.close()


def _source(mount: Mount) -> str:
    """What virtiofsd is to serve: the root by way of a read-only copy of all mounts that only virtiofsd sees."""
    if not mount.readonly:
        return mount.path
    return "/mnt" if os.path.isdir("/mnt") else "/tmp"


def _virtiofsd_args(path: str, c_version: bool, mount: Mount, fd: int) -> list[str]:
    # Nothing changes below the read-only root while a host runs; what is in a share may.
    cache = "always" if mount.readonly else "auto"
    if c_version:
        escaped = _source(mount).replace("\\", "\\\\").replace(",", "\\,")
        return [path, f"--fd={fd}", "-f", "-o", f"source={escaped}", "-o", f"cache={cache}", "-o", "log_level=warn"]
    return [path, f"--fd={fd}", f"--shared-dir={_source(mount)}", f"--cache={cache}", "--log-level=warn"]


def _root_flags() -> list[str]:
    """`foreign` where most files are not the server's own (Documentation/host-vm.md)."""
    return ["foreign"] if os.getuid() else []


class Virtiofs:
    """Serves mounts by one virtiofsd each."""

    fstype = "virtiofs"
    modules: tuple[str, ...] = ("virtiofs",)
    options = ""

    def __init__(self, binary: str, wanted: list[Mount]) -> None:
        self.root_flags = _root_flags()
        self._servers: list[tuple[Mount, socket.socket, Process]] = []
        c_version = _is_c_virtiofsd(binary)
        try:
            for mount in wanted:
                self._servers.append((mount, *self._start(binary, c_version, mount)))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _start(binary: str, c_version: bool, mount: Mount) -> tuple[socket.socket, Process]:
        # virtiofsd accepts one connection of a listening socket: ours is made before it starts, and nobody else's is
        # ever accepted. The name is an abstract one, so no file is left.
        listener = socket.socket(socket.AF_UNIX)
        client = socket.socket(socket.AF_UNIX)
        try:
            listener.bind("")
            listener.listen(1)
            client.connect(listener.getsockname())

            def prepare() -> None:
                become_namespace_root()
                if mount.readonly:
                    readonly_root(_source(mount))

            args = _virtiofsd_args(binary, c_version, mount, listener.fileno())
            return client, spawn(args, fds=[listener.fileno()], prepare=prepare)
        except BaseException:
            client.close()
            raise
        finally:
            listener.close()

    def qemu_args(self) -> list[str]:
        return []

    def plug(self, qemu: Qemu) -> None:
        """Hot-plug the devices. QMP hands QEMU the connections."""
        for mount, client, process in self._servers:
            if process.poll() is not None:
                raise CannotRun(f"virtiofsd ended: {process.log_text()[-300:]}")
            qemu.qmp.execute("getfd", {"fdname": mount.tag}, fds=[client.fileno()])
            address = {"type": "fd", "data": {"str": mount.tag}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            qemu.qmp.execute("chardev-add", {"id": mount.tag, "backend": backend})
            device = {"driver": "vhost-user-fs-pci", "id": f"fs-{mount.tag}", "chardev": mount.tag, "tag": mount.tag}
            qemu.qmp.execute("device_add", {**device, "queue-size": 1024})

    def failure(self) -> str:
        """Why a mount cannot work any more: which server ended, or an empty string."""
        for mount, _client, process in self._servers:
            if process.poll() is not None:
                said = process.log_text().splitlines()
                return f"the file server of {mount.path} ended{': ' + said[-1] if said else ''}"
        return ""

    @property
    def pidfds(self) -> list[int]:
        return [process.pidfd for _mount, _client, process in self._servers]

    def close(self) -> None:
        for _mount, client, _process in self._servers:
            client.close()
        for _mount, _client, process in self._servers:
            process.wait(_FAREWELL)  # it ends when the connection does, and reaps its own child
            process.close()
        self._servers = []


class NineP:
    """Serves mounts by QEMU itself."""

    fstype = "9p"
    modules: tuple[str, ...] = ("9p", "9pnet_virtio")
    options = _9P_OPTIONS

    def __init__(self, wanted: list[Mount]) -> None:
        self.root_flags = _root_flags()
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
    binary = find_virtiofsd()
    if not binary:
        return NineP(wanted), "no virtiofsd on this machine: the host VM's root goes by 9p, which is slower"
    try:
        return Virtiofs(binary, wanted), ""
    except CannotRun as error:
        return NineP(wanted), f"virtiofsd cannot be used ({error.message}): the root goes by 9p, which is slower"
