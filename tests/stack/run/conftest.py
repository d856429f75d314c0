# SPDX-License-Identifier: GPL-2.0-only
"""A host VM for the guests of a module, with the images that they need in the cache: it cannot write there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unikvm.cli.options import directories, network
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.depmod import indexed
from unikvm.images.guest import MODULES, OPTIONAL_MODULES, guest_initramfs
from unikvm.images.kernel import Kernel, find_kernel
from unikvm.images.vmlinux import vmlinux


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The guest's kernel, with its vmlinux, and an initramfs for each set of options."""
    found = find_kernel()
    vmlinux(found.image)
    indexed(found.modules, found.release)
    for files in ((), directories.GUEST_MODULES):
        for net in ((), network.GUEST_MODULES):
            optional = (*OPTIONAL_MODULES, *(network.OPTIONAL_MODULES if net else ()))
            guest_initramfs(found, init=init_binary(), modules=(*MODULES, *files, *net), optional=optional)
    named = (*OPTIONAL_MODULES, *network.GUEST_MODULES, *network.OPTIONAL_MODULES)  # such a guest may get a network
    guest_initramfs(found, init=init_binary(), optional=named)
    return found


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def host(kernel: Kernel, share: Path) -> Iterator[HostVm]:
    config = HostConfig(kernel=kernel, init=init_binary(), shares=(str(share),), modules=network.HOST_MODULES)
    with HostVm(config) as running:
        yield running
