# SPDX-License-Identifier: GPL-2.0-only
"""Networks and disks that come to a running guest while it uses them, and go: nothing of them stays behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stack.run.hosted import command, sh
from unikvm.cli import agent
from unikvm.cli.options import network
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import Exit, HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.guest import OPTIONAL_MODULES, guest_initramfs
from unikvm.images.kernel import Kernel
from unit.vhost.peer import make_qcow2

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(kernel: Kernel, share: Path) -> Iterator[HostVm]:
    """One where guests have an agent."""
    optional = (*OPTIONAL_MODULES, *agent.GUEST_MODULES, *network.GUEST_MODULES, *network.OPTIONAL_MODULES)
    guest_initramfs(kernel, init=init_binary(), optional=optional)  # the host VM cannot write it
    modules = (*network.HOST_MODULES, *agent.HOST_MODULES)
    with HostVm(HostConfig(kernel=kernel, init=init_binary(), shares=(str(share),), modules=modules)) as running:
        yield running


def unikvm(host: HostVm, words: str) -> Exit:
    return sh(host, f"{LAUNCHER} {words}")


@contextmanager
def guest(host: HostVm, name: str) -> Iterator[str]:
    """`name` runs, and nothing of it afterwards."""
    start = f"{command('-n', name, '--', 'sleep', '1000')} </dev/null >/tmp/{name} 2>&1 & echo $! >/tmp/{name}.pid"
    assert sh(host, start).status == 0
    try:
        ready = sh(host, f"until {LAUNCHER} list | grep -q {name}; do sleep 0.5; done; {LAUNCHER} exec {name} -- true")
        assert ready.status == 0, ready.stderr
        yield name
    finally:
        sh(host, f"kill $(cat /tmp/{name}.pid); while kill -0 $(cat /tmp/{name}.pid); do sleep 0.1; done")


def attach(host: HostVm, name: str, words: str) -> str:
    """Its address."""
    done = unikvm(host, f"attach {name} {words}")
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


def said(host: HostVm, name: str, script: str) -> Exit:
    return unikvm(host, f"exec {name} -- sh -c '{script}'")


def test_networks(host: HostVm) -> None:
    """They come with their addresses."""
    with guest(host, "one") as one, guest(host, "two") as two:
        there = [attach(host, name, f"--net hub=between,ip=10.1.0.{n}") for n, name in enumerate((one, two), 1)]
        done = said(host, one, "ping -c 1 -W 5 10.1.0.2")
        assert done.status == 0, (done.stdout, done.stderr)
        # While frames come.
        sh(host, f"{LAUNCHER} exec {two} -- sh -c 'ping 10.1.0.1 >/dev/null' </dev/null >/dev/null 2>&1 &")
        done = unikvm(host, f"detach {one} {there[0]}")
        assert done.status == 0, done.stderr
        assert said(host, one, "! test -e /sys/class/net/eth0").status == 0
        assert len(sh(host, "ls /tmp/unikvm-0/hubs/between").stdout.split()) == 1

        address = attach(host, one, "--net tap=net5,ip=192.168.7.2,gw=192.168.7.1")
        assert said(host, one, "ping -c 1 -W 5 192.168.7.1").status == 0
        assert unikvm(host, f"detach {one} {address}").status == 0
        assert sh(host, "test -e /sys/class/net/net5").status == 1

        attach(host, one, "--net user")
        done = said(host, one, "cat /etc/resolv.conf; ifconfig eth0")
        assert done.stdout.startswith(b"nameserver ")
        assert b"10.0.2.15" in done.stdout
    assert sh(host, "ls -A /tmp/unikvm-0/hubs/between").stdout == b""


def test_a_disk_that_is_written_to(host: HostVm, share: Path) -> None:
    """Its driver goes in the middle of it: the writer has an error, and the disk's own process has ended."""
    make_qcow2(share / "disk.qcow2", 512 * MIB)  # it does not get full
    with guest(host, "three") as name:
        address = attach(host, name, f"--disk {share}/disk.qcow2")
        assert sh(host, "pgrep qemu-storage").status == 0
        script = "until test -b /dev/vda; do sleep 0.1; done; exec 3>/dev/vda; echo began >/began; cat /dev/zero >&3"
        sh(host, f"{LAUNCHER} exec {name} -- sh -c '{script}' </dev/null >/tmp/writer 2>&1 &")
        assert said(host, name, "until test -e /began; do sleep 0.1; done; sleep 1").status == 0
        done = unikvm(host, f"detach {name} {address}")
        assert done.status == 0, done.stderr
        assert said(host, name, "! test -b /dev/vda").status == 0
        end = time.monotonic() + 10
        while sh(host, "pgrep qemu-storage").status == 0:
            assert time.monotonic() < end, "its process is left"
        while not (told := sh(host, "cat /tmp/writer").stdout):
            assert time.monotonic() < end, "the writer goes on"
        assert b"write error" in told, told
