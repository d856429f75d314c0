# SPDX-License-Identifier: GPL-2.0-only
"""The disks of a running machine, by their images."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.units import format_size
from unikvm.virtio.growing import Growing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.machine.builder import Parts
    from unikvm.virtio.device import VirtioDevice


def find(parts: Parts, path: str) -> Growing:
    """The disk whose image is `path`. CannotRun where there is none."""
    there = [device for device in _devices(parts) if isinstance(device, Growing)]
    wanted = os.path.realpath(path)
    for disk in there:
        if os.path.realpath(disk.path) == wanted:
            return disk
    hint = f"its disks: {', '.join(disk.path for disk in there)}" if there else "it has none"
    raise CannotRun(f"the guest has no disk {path}", hint=hint)


def _devices(parts: Parts) -> list[VirtioDevice]:
    if parts.pci is None:
        return parts.devices
    from unikvm.machine.hotplug import virtio_devices

    return [device for _, device in virtio_devices(parts.pci)]


def facts(device: VirtioDevice) -> dict[str, object]:
    """What a user wants to know of a device that is a disk."""
    if not isinstance(device, Growing) or not device.path:
        return {}
    return {"image": device.path, "size": format_size(device.size)}
