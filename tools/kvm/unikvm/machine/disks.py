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


def grow(parts: Parts, path: str, size: int) -> None:
    """Make the disk whose image is `path` larger, as `Growing.grow` does: those, where several only read it. CannotRun
    where there is none."""
    there = [device for device in _devices(parts) if isinstance(device, Growing) and device.path]
    wanted = os.path.realpath(path)
    found = [disk for disk in there if os.path.realpath(disk.path) == wanted]
    if not found:
        hint = f"its disks: {', '.join(disk.path for disk in there)}" if there else "it has none"
        raise CannotRun(f"the guest has no disk {path}", hint=hint)
    for disk in found:
        disk.grow(size)


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
