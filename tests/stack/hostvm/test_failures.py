# SPDX-License-Identifier: GPL-2.0-only
"""A host VM that fails: what is said, what is tried again, what is left (nothing)."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import all_ended, children
from unikvm.errors import CANNOT_RUN, HANG, PANIC
from unikvm.hostvm import snapshot
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm, with_host
from unikvm.hostvm.watchdog import HostError


def named(name: str, pids: list[int]) -> list[int]:
    return [pid for pid in pids if name in Path(f"/proc/{pid}/comm").read_text()]


def hurt_while(host: HostVm, argv: list[str], hurt: Callable[[], None]) -> None:
    timer = threading.Timer(0.5, hurt)
    timer.start()
    try:
        host.exec(argv)
    finally:
        timer.join()


def kill(name: str, number: int) -> None:
    os.kill(named(name, children(os.getpid()))[0], number)


def test_a_panic_is_found_and_not_tried_again(host_config: HostConfig) -> None:
    said: list[str] = []
    script = ["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]
    with pytest.raises(HostError) as caught:
        with_host(host_config, lambda host: host.exec(script), say=said.append)
    error = caught.value
    assert (error.kind, error.outcome, said) == ("host-panic", PANIC, [])
    assert "sysrq triggered crash" in error.message
    assert "Call Trace" in error.console
    assert all_ended(children(os.getpid()))


def test_a_killed_qemu_is_tried_once_more(host_config: HostConfig) -> None:
    said: list[str] = []
    with pytest.raises(HostError) as caught:
        with_host(
            host_config,
            lambda host: hurt_while(host, ["sleep", "60"], lambda: kill("qemu", signal.SIGKILL)),
            say=said.append,
        )
    assert (caught.value.kind, caught.value.outcome) == ("host-died", CANNOT_RUN)
    assert said == ["the host VM's QEMU ended with signal 9; trying once more"]


def test_the_second_try_can_succeed(host_config: HostConfig) -> None:
    tries: list[int] = []

    def action(host: HostVm) -> int:
        tries.append(1)
        if len(tries) == 1:
            kill("qemu", signal.SIGKILL)
        return host.exec(["true"]).status

    assert with_host(host_config, action) == 0
    assert len(tries) == 2


def test_nothing_is_tried_again_once_output_was_seen(host_config: HostConfig) -> None:
    said: list[str] = []
    script = ["/bin/sh", "-c", "echo seen; sleep 60"]
    with pytest.raises(HostError):
        with_host(
            host_config,
            lambda host: host.exec(script, stdout=lambda _data: kill("qemu", signal.SIGKILL)),
            say=said.append,
        )
    assert said == []


def test_a_hang(host_config: HostConfig) -> None:
    config = dataclasses.replace(host_config, patience=0.15)
    with HostVm(config) as host:
        with pytest.raises(HostError) as caught:
            hurt_while(host, ["sleep", "60"], lambda: kill("qemu", signal.SIGSTOP))
        pids = children(os.getpid())
    assert (caught.value.kind, caught.value.outcome) == ("host-hang", HANG)
    assert all_ended(pids)


def test_a_dead_file_server(host_config: HostConfig) -> None:
    with HostVm(host_config) as host:
        if not named("virtiofsd", children(os.getpid())):
            assert host.exec(["true"]).status == 0  # 9p has none to kill
            return
        with pytest.raises(HostError, match="the file server of / ended"):
            hurt_while(host, ["sleep", "60"], lambda: kill("virtiofsd", signal.SIGKILL))


def test_kill_9_of_the_front_end_leaves_nothing(host_config: HostConfig) -> None:
    script = f"""
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.kernel import Kernel
kernel = Kernel({host_config.kernel.image!r}, {host_config.kernel.release!r}, {host_config.kernel.modules!r})
with HostVm(HostConfig(kernel=kernel, init={host_config.init!r})) as host:
    print("up", flush=True)
    host.exec(["sleep", "100"])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env) as front:
        assert front.stdout is not None
        assert front.stdout.readline() == b"up\n"
        pids = children(front.pid)
        assert named("qemu", pids)
        front.kill()
    assert all_ended(pids)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "unikvm" / "hosts"


def test_a_kept_host_is_resumed_and_a_damaged_one_is_not(host_config: HostConfig, own_cache: Path) -> None:
    said: list[str] = []

    def used() -> bool:
        with HostVm(host_config, say=said.append) as host:
            assert host.exec(["true"]).status == 0
            return host.from_snapshot

    assert not used()
    (kept,) = own_cache.iterdir()
    assert used()
    assert said == []
    state = kept / "state"
    state.write_bytes(state.read_bytes()[:1000])
    assert not used()
    assert said == ["the kept host cannot be resumed (it is damaged); booting"]
    assert used()


def test_a_host_that_cannot_be_kept_runs_all_the_same(
    host_config: HostConfig, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: int, _target: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "copy_sparse", full)
    said: list[str] = []
    with HostVm(host_config, say=said.append) as host:
        assert host.exec(["true"]).status == 0
    assert said == [f"the booted host is not kept: No space left on device in {own_cache}"]
    assert list(own_cache.iterdir()) == []
