# SPDX-License-Identifier: GPL-2.0-only
"""--mem, --pmem and --root IMAGE: what a plan becomes by them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unikvm.cli.options import directories, memory
from unikvm.cli.plan import Plan, command_line, load
from unikvm.cli.run import quick_parse
from unikvm.cli.run_vm import check_written
from unikvm.errors import CannotRun
from unikvm.machine.config import Config, Disk, Pmem
from unikvm.units import GIB

PLAN = Plan(Config(kernel="vmlinux", memory=GIB), linux=True, command=("true",))


def added(*words: str) -> Plan:
    options = quick_parse(["-m", "1G", *words])
    assert options is not None
    return memory.add(PLAN, options)


def test_memory_that_comes_and_goes() -> None:
    plan = added("-m", "1G,max=4G,balloon")
    assert (plan.config.max_memory, plan.config.balloon, plan.config.hugepages) == (4 * GIB, True, False)
    assert load(plan.dump()) == plan
    assert memory.optional_modules(plan) == ("virtio_balloon", "virtio_mem")
    assert memory.HOTPLUG_WORD in command_line(plan, True).split()
    assert memory.HOTPLUG_WORD not in command_line(PLAN, True).split()
    assert memory.host_memory(plan.config) == 5 * GIB
    assert added("-m", "1G,hugepages").config.hugepages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1G,ballon", "'ballon' is not understood"),
        ("1G,max=1G", "cannot grow to 1G"),
        ("1G,max=1025M", r"cannot grow to 1025M \(to more, by a multiple of 2M\)"),
        ("1G,balloon,hugepages", "would give nothing back"),
        ("1G,max=much", "bad size"),
    ],
)
def test_memory_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        added("-m", text)


def test_images() -> None:
    plan = added("--pmem", "a.img", "--pmem", "/b.img,ro", "--pmem", "c.img,cow")
    here = os.getcwd()
    assert plan.config.pmems == (Pmem(f"{here}/a.img"), Pmem("/b.img", "ro"), Pmem(f"{here}/c.img", "cow"))
    assert load(plan.dump()) == plan
    assert memory.optional_modules(plan) == ("virtio_pmem", "nd_pmem")
    with pytest.raises(CannotRun, match=f"may not write to {here}/a.img"):
        check_written(plan)
    check_written(plan.replace(shares=(here,)))
    with pytest.raises(CannotRun, match="both ro and cow"):
        added("--pmem", "a.img,ro,cow")


def ext4(path: Path, *, block: int) -> Path:
    image = bytearray(4096)
    image[0x438:0x43A] = b"\x53\xef"
    image[0x418] = block
    path.write_bytes(image)
    return path


def test_a_root_image(tmp_path: Path) -> None:
    image = ext4(tmp_path / "root.img", block=2)
    options = quick_parse(["--root", str(image), "--pmem", "more.img,ro"])
    assert options is not None
    plan = directories.add(memory.add(PLAN, options), options)
    assert plan.config.pmems[0] == Pmem(str(image), "cow")
    assert len(plan.config.pmems) == 2
    assert memory.root_request(plan) == ("root", "ext4", "/dev/pmem0", "dax")
    assert memory.optional_modules(plan)[-1] == "ext4"
    assert memory.root_modules(plan) == ("overlay",)
    assert (plan.cwd, plan.exports, plan.command) == ("/", (), ("true",))
    assert load(plan.dump()) == plan
    outside = plan.replace(config=plan.config.replace(disks=(Disk("a.qcow2", kind="qcow2"),)))
    assert memory.root_request(outside)[-1] == ""
    ext4(image, block=0)
    assert memory.root_request(plan)[-1] == ""


def test_what_is_no_root(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(CannotRun, match="neither a directory nor an image with a file system"):
        memory.with_root(PLAN, str(path))
    (tmp_path / "squash").write_bytes(b"hsqs" + bytes(100))
    assert memory.with_root(PLAN, str(tmp_path / "squash")).root_type == "squashfs"
