# SPDX-License-Identifier: GPL-2.0-only
"""How QEMU is started: accelerator, command line, and what a config refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unikvm.errors import CannotRun
from unikvm.hostvm import launch
from unikvm.hostvm.config import HostConfig
from unikvm.units import MIB

KERNEL = SimpleNamespace(image="/vmlinuz", release="6.1.0", modules="/lib/modules/6.1.0")


def config(**how: object) -> HostConfig:
    return HostConfig(kernel=KERNEL, init="/init", **how)  # type: ignore[arg-type]


def machine(monkeypatch: pytest.MonkeyPatch, flags: str, nested: str = "1", kvm: bool = True) -> None:
    files = {"/proc/cpuinfo": f"flags : fpu {flags}\n"}
    files |= dict.fromkeys(["/sys/module/kvm_amd/parameters/nested", "/sys/module/kvm_intel/parameters/nested"], nested)
    monkeypatch.setattr(launch, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr("os.access", lambda _path, _mode: kvm)


@pytest.mark.parametrize(
    ("flags", "nested", "kvm", "kind", "why"),
    [
        ("svm", "1\n", True, "kvm", "nesting"),
        ("vmx", "Y\n", True, "kvm", "nesting"),
        ("sse", "1\n", True, "tcg", "neither svm nor vmx"),
        ("svm", "0\n", True, "tcg", "does not nest"),
        ("vmx", "1\n", False, "tcg", "/dev/kvm"),
    ],
)
def test_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, flags: str, nested: str, kvm: bool, kind: str, why: str
) -> None:
    machine(monkeypatch, flags, nested, kvm)
    accel = launch.choose_accel(config())
    assert accel.kind == kind
    assert why in accel.why
    if kind == "tcg":
        assert accel.vendor == "amd"  # what the emulator emulates
        with pytest.raises(CannotRun, match="cannot use KVM"):
            launch.choose_accel(config(accel="kvm"))
    assert launch.choose_accel(config(accel="tcg")).kind == "tcg"


def test_icount_is_one_emulated_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "svm")
    counted = config(icount=True)
    args = launch.machine_args(counted, launch.choose_accel(counted))
    assert args[args.index("-icount") + 1] == "shift=0,sleep=on"
    assert args[args.index("-smp") + 1] == "1"
    with pytest.raises(CannotRun, match="one CPU"):
        config(icount=True, cpus=2)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sse")
    wanted = config(append="kvm.halt_poll_ns=0", memory=512 * MIB, cpus=2)
    accel = launch.choose_accel(wanted)
    args = launch.machine_args(wanted, accel)
    assert args[args.index("-m") + 1] == "512M"
    assert "virtserialport,bus=ports.0,chardev=unikvm.ctl,name=unikvm.ctl" in args
    line = launch.kernel_cmdline(wanted, accel)
    assert line.endswith(" kvm.halt_poll_ns=0")
    assert "clocksource=tsc" in line
    machine(monkeypatch, "svm")
    assert "clocksource" not in launch.kernel_cmdline(wanted, launch.choose_accel(wanted))


def test_the_emulated_tsc_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sse")
    monkeypatch.setattr(launch, "tsc_khz", lambda: 2_300_000)
    for wanted, told in ((config(), True), (config(icount=True), False)):
        assert ("tsc_early_khz=2300000" in launch.kernel_cmdline(wanted, launch.choose_accel(wanted))) == told
    monkeypatch.setattr(launch, "tsc_khz", lambda: 0)  # no KVM
    assert "tsc_early_khz" not in launch.kernel_cmdline(config(), launch.choose_accel(config()))


@pytest.mark.parametrize(
    "how", [{"cpus": 0}, {"cpus": 9}, {"memory": 1}, {"memory": 512 * MIB + 1}, {"shares": ("x",)}]
)
def test_impossible_hosts(how: dict[str, object]) -> None:
    with pytest.raises(CannotRun):
        config(**how)


def test_memory_beyond_reason() -> None:
    with pytest.raises(CannotRun, match="of memory for the host VM"):
        launch.new_ram(1 << 63)


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sse")
    missing = config(qemu="/no/such/qemu")
    with pytest.raises(CannotRun, match=r"cannot start /no/such/qemu.*is QEMU installed"):
        launch.start_qemu(
            missing, launch.choose_accel(missing), [], ram=launch.new_ram(MIB), initrd=None, incoming=False
        )
