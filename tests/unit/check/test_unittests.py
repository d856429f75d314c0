# SPDX-License-Identifier: GPL-2.0-only
"""unittests.cfg as kvm-unit-tests write it, and what becomes of a test for unikvm and for QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.check import unittests
from unikvm.check.job import BY_QEMU, BY_UNIKVM
from unikvm.check.unittests import Machine, UnitTest, Unsupported, chosen, machine_of, parse, tasks
from unikvm.errors import CannotRun
from unikvm.units import GIB

# Lines in the forms that kvm-unit-tests' own file has.
CONFIG = """\
##############################################################################
# [unittest_name]
# file = <name>.flat
##############################################################################

[apic]
file = apic.flat
smp = 2
extra_params = -cpu qemu64,+x2apic,+tsc-deadline
arch = x86_64
timeout = 30

#[off]
#file = off.flat
[pmu_lbr]
file = pmu.flat
extra_params = -cpu host,migratable=no
check = /sys/module/kvm/parameters/ignore_msrs=N
check = /proc/sys/kernel/nmi_watchdog=0 /x=y
groups = pmu nodefault

[newer]
file = newer.flat
qemu_params = -cpu max -m 2048
test_args = "one two=3"
accel = kvm
"""


def test_parse() -> None:
    apic, pmu, newer = parse(CONFIG)
    assert apic == UnitTest("apic", "apic.flat", "2", "-cpu qemu64,+x2apic,+tsc-deadline", arch="x86_64", timeout="30")
    assert pmu.groups == ("pmu", "nodefault")
    assert pmu.check == ("/sys/module/kvm/parameters/ignore_msrs=N", "/proc/sys/kernel/nmi_watchdog=0", "/x=y")
    assert (newer.params, newer.args) == ("-cpu max -m 2048", '"one two=3"')


def test_chosen() -> None:
    found = parse(CONFIG)
    assert [test.name for test in chosen(found, [])] == ["apic", "newer"]
    assert [test.name for test in chosen(found, ["pmu"])] == ["pmu_lbr"]
    assert [test.name for test in chosen(found, ["a*", "newer"])] == ["apic", "newer"]


@pytest.mark.parametrize(
    ("params", "machine"),
    [
        ("", Machine(1, "128M", "")),
        ("-cpu max -m 4g", Machine(1, "4g", "")),
        ("-m 2560 -append \"ept_access*\"", Machine(1, "2560", "ept_access*")),
        ("-append 'cpuid'", Machine(1, "128M", "cpuid")),
        ("--append tscdeadline -smp 4", Machine(4, "128M", "tscdeadline")),
        ("-enable-kvm -m 2048 -cpu host", Machine(1, "2048", "")),
        ("-cpu max,host-phys-bits,+vmx", Machine(1, "128M", "")),
        ("-display none -vnc none", Machine(1, "128M", "")),
    ],
)  # fmt: skip
def test_machine(params: str, machine: Machine) -> None:
    assert machine_of(UnitTest("t", "t.flat", params=params)) == machine


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ("-cpu qemu64,-pcid", "unikvm has no `-cpu qemu64,-pcid`"),
        ("-cpu max,vendor=GenuineIntel", "unikvm has no `-cpu max,vendor=GenuineIntel`"),
        ("-cpu IvyBridge,phys-bits=36", "unikvm has no `-cpu IvyBridge,phys-bits=36`"),
        ("-cpu kvm64,hv_vpindex -device hyperv-testdev", "unikvm has no `-cpu kvm64,hv_vpindex`"),
        ("-machine kernel_irqchip=split", "unikvm has no `-machine kernel_irqchip=split`"),
        ("-device intel-iommu", "unikvm has no `-device intel-iommu`"),
        ("-smp 64", "unikvm has no `-smp 64`"),
        ("-append \"`uname`\"", "its parameters are a shell's work"),
        ("-append \"open", "its parameters cannot be read: No closing quotation"),
        ("-m much", "bad size 'much'"),
    ],
)  # fmt: skip
def test_what_unikvm_does_not_have(params: str, why: str) -> None:
    with pytest.raises(Unsupported) as caught:
        machine_of(UnitTest("t", "t.flat", params=params))
    assert str(caught.value) == why


def test_the_one_command_that_is_known() -> None:
    args = machine_of(UnitTest("kvmclock", params='--append "10000000 `date +%s`"')).args
    assert args.startswith("10000000 ")
    assert args.split()[1].isdigit()


@pytest.fixture
def tree(tmp_path: Path) -> str:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86/unittests.cfg").write_text(CONFIG)
    (tmp_path / "x86/newer.flat").touch()
    return str(tmp_path)


def test_commands(tree: str) -> None:
    found = unittests.read(tree)
    apic, _, newer = tasks(tree, found, 60.0, qemu=False)
    assert apic.skip == f"not built: {tree}/x86/apic.flat"
    assert (newer.reads, newer.timeout) == (BY_UNIKVM, 70.0)
    path = f"{tree}/x86/newer.flat"
    words = ["-k", path, "-m", "2048", "-c", "1", "-p", f"{path} one two=3"]
    own = ["run", "--host", "local", "--testdev", "--timeout", "60"]
    assert newer.within("/tree") == ("/tree/scripts/unikvm", *own, *words)
    qemu = tasks(tree, found, 60.0, qemu=True)[2]
    assert (qemu.reads, qemu.timeout, qemu.skip) == (BY_QEMU, 60.0, "")
    assert qemu.command[-9:] == (path, "-smp", "1", "-cpu", "max", "-m", "2048", "-append", "one two=3")
    assert unittests.most_memory(found) == 2 * GIB


def test_a_test_may_have_more_time_than_asked_for(tree: str) -> None:
    (Path(tree) / "x86/apic.flat").touch()
    found = unittests.read(tree)
    assert tasks(tree, found, 10.0, qemu=True)[0].timeout == 30.0
    assert tasks(tree, found, 60.0, qemu=True)[0].timeout == 60.0


def test_no_tree(tmp_path: Path, tree: str) -> None:
    with pytest.raises(CannotRun, match=r"no tree of kvm-unit-tests.*unittests\.cfg: No such file"):
        unittests.read("/nowhere")
    (Path(tree) / "x86/newer.flat").unlink()
    with pytest.raises(CannotRun, match=r"is not built \(\./configure && make, there\)"):
        unittests.read(tree)
