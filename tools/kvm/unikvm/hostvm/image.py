# SPDX-License-Identifier: GPL-2.0-only
"""The host VM's initramfs: init, and the modules that the host needs before it has a root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unikvm.errors import CannotRun

if TYPE_CHECKING:
    from unikvm.hostvm.config import HostConfig

_TRANSPORT = ("virtio_pci", "virtio_console", "overlay")
# Nested guests inside the host's guests, and AVIC, are not what is under test, and slow TCG down.
_PARAMETERS = {"kvm-amd": "nested=0 avic=0"}
_SHADOW_PAGING = {"kvm-amd": "npt=0", "kvm-intel": "ept=0"}


def module_names(config: HostConfig, vendor: str, fs_modules: tuple[str, ...]) -> list[str]:
    """The modules to load, by name, in order; their dependencies come on top."""
    return [*_TRANSPORT, *fs_modules, "kvm", f"kvm-{vendor}", *config.modules]


def _name(path: str) -> str:
    return os.path.basename(path).partition(".")[0].replace("_", "-")


def build(config: HostConfig, names: list[str]) -> int:
    """Write the initramfs into a memfd. CannotRun where a part of it is missing."""
    from unikvm.images.initramfs import Initramfs
    from unikvm.images.modules import decompressed, resolve

    archive = Initramfs()
    try:
        with open(config.init, "rb") as file:
            archive.add_file("/init", file.read(), mode=0o755)
    except OSError as error:
        raise CannotRun(f"no init for the host VM: {error}", hint="`make build` builds it") from error
    lines = []
    for path in resolve(config.kernel.modules, config.kernel.release, names):
        name = _name(path)
        inside = f"/lib/modules/{config.kernel.release}/{name}.ko"
        archive.add_file(inside, decompressed(path), mode=0o644)  # the machine unpacks faster than the emulator
        parameters = [_PARAMETERS.get(name, ""), "" if config.nested_paging else _SHADOW_PAGING.get(name, "")]
        lines.append(" ".join([inside, *filter(None, parameters)]))
    archive.add_file("/unikvm/modules.list", "".join(f"{line}\n" for line in lines).encode(), mode=0o644)
    fd = os.memfd_create("initramfs", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as output:
        archive.write(output)
    return fd
