# SPDX-License-Identifier: GPL-2.0-only
"""One host VM for many tests, and the config for those that need their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.kernel import find_kernel


@pytest.fixture(scope="session")
def host_config() -> HostConfig:
    """The default host kernel with the built init. Resumed from the kept host where there is one."""
    return HostConfig(kernel=find_kernel(), init=init_binary())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the module's host may write to."""
    return tmp_path_factory.mktemp("share,with comma")


@pytest.fixture(scope="module")
def host(host_config: HostConfig, shared: Path) -> Iterator[HostVm]:
    config = HostConfig(kernel=host_config.kernel, init=host_config.init, shares=(str(shared),))
    with HostVm(config) as running:
        yield running
