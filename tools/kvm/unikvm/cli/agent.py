# SPDX-License-Identifier: GPL-2.0-only
"""The guest's agent, for runs of guests that can be reached: what it needs in guest and host, and the way to it."""

from __future__ import annotations

from unikvm.errors import CannotRun, UnikvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unikvm.control.server import Server
    from unikvm.hostvm.host import HostVm
    from unikvm.machine.agentlink import AgentLink
    from unikvm.sys.eventloop import EventLoop
    from unikvm.virtio.device import VirtioDevice

GUEST_MODULES = ("vmw_vsock_virtio_transport",)  # where its kernel has it
GUEST_WORD = "unikvm.agent"  # on the kernel's command line: init, start it
HOST_MODULES = ("vhost_vsock",)
SECONDS = 120.0  # a guest under emulation takes so long to boot on a busy machine


class AgentAccess:
    """The device and the way over it to the agent of a guest, or why there is none. `devices`: to plug in."""

    def __init__(self, *, linux: bool, own_init: bool) -> None:
        self.devices: tuple[VirtioDevice, ...] = ()
        self._link: AgentLink | None = None
        self._why = "has no agent: that comes with unikvm's initramfs, and so not with firmware or a payload"
        if linux:
            self._why = "has no agent: its initramfs is not unikvm's (`unikvm run -- CMD` puts ours on top)"
        if own_init:
            from unikvm.machine.agentlink import make

            try:
                device, self._link = make()
                self.devices = (device,)
            except CannotRun as error:
                self._why = f"has no vsock: {error}"

    def start(self, loop: EventLoop) -> None:
        """Wait for the agent, on the thread of `loop`. Before the guest runs."""
        if self._link is not None:
            self._link.start(loop)

    def serve(self, server: Server, name: str) -> None:
        """Answer the command `agent`: a byte stream to the agent (Documentation/vsock.md)."""
        from unikvm.control.server import Bytes, Later

        link = self._link

        def agent(arguments: dict[str, Any]) -> object:
            if link is None:
                raise UnikvmError(f"guest {name} {self._why}")
            seconds = float(arguments.get("seconds", SECONDS))
            return Later(lambda reply, fail: link.connect(lambda fd: reply(Bytes(fd)), fail, seconds))

        server.command("agent", agent)


def prepare_host(host: HostVm, modules: tuple[str, ...]) -> None:
    """Load what a host VM needs for what may be asked for while the guest runs. Where its kernel has it not, that is
    said when it is asked for."""
    from unikvm.images.modules import resolve

    kernel = host.config.kernel
    try:
        for path in resolve(kernel.modules, kernel.release, modules):
            host.insmod(path)
    except UnikvmError:
        return
