# SPDX-License-Identifier: GPL-2.0-only
"""`--host local` on a machine that may load the kernel half: a host VM plays the machine."""

from __future__ import annotations

from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.kernel import Kernel


def test_the_kernel_half_is_loaded_when_it_is_not(kernel: Kernel) -> None:
    with HostVm(HostConfig(kernel=kernel, init=init_binary())) as host:
        done = host.exec([LAUNCHER, "run", "--host", "local", "--exits", "--", "echo", "up"], timeout=120)
        assert (done.status, done.stdout) == (0, b"up\n"), done.stderr
        assert "loading the kernel half: done" in done.stderr.decode()
        assert "exits, " in done.stderr.decode()
        assert "kernel half  0.1.0" in host.exec([LAUNCHER, "version"], timeout=60).stdout.decode()
