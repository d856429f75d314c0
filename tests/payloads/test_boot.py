# SPDX-License-Identifier: GPL-2.0-only
"""Each way to boot, with guests of some instructions on a real /dev/kvm (an emulated one is enough)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from struct import pack_into

import pytest

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.topology import Topology
from unikvm.errors import CannotRun
from unikvm.machine.events import DebugExit, Event
from unikvm.machine.machine import Machine
from unit.boot import images as made

Payload = Callable[[str], str]
SECONDS = 120.0


def boot(kernel: str, **fields: object) -> tuple[Event, str]:
    """Run `kernel` to its end; what it printed on the serial port."""
    with Machine(kernel=kernel, console="serial", **{"memory": "16M", **fields}) as machine:  # type: ignore[arg-type]
        event = machine.run(timeout=SECONDS)
        return event, machine.console.decode()


def facts(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())


@pytest.mark.parametrize("name", ["hello.elf", "hello-multiboot.elf"])
def test_hello(payload: Payload, name: str) -> None:
    assert boot(payload(name), cmdline="status=42") == (DebugExit(42), "hello from the payload\n")


def test_flat(payload: Payload) -> None:
    assert boot(payload("flat.bin"), memory="1M") == (DebugExit(7), "flat\n")


@pytest.mark.parametrize(("name", "loader"), [("bootinfo.elf", "pvh"), ("bootinfo-multiboot.elf", "multiboot")])
def test_what_the_guest_is_told(payload: Payload, tmp_path: Path, name: str, loader: str) -> None:
    module = tmp_path / "module"
    module.write_bytes(bytes(range(256)) * 100 + b"tail")
    event, text = boot(payload(name), cmdline="one two=3", memory="64M", initrd=str(module))
    told = facts(text)
    assert event == DebugExit(0)
    assert told["loader"] == loader
    assert told["cmdline"] == "one two=3"
    assert int(told["modules"], 16) == 1
    assert int(told["module-size"], 16) == 25604
    assert int(told["module-sum"], 16) == sum(module.read_bytes())
    assert int(told["ram"], 16) == sum(size for _, size, kind in layout.e820(64 << 20) if kind == layout.E820_RAM)
    assert int(told["rsdp"], 16) == (layout.ACPI if loader == "pvh" else 0)


# 32-bit code: status 7 when the setup header is where ESI says, CS is 0x10, DS 0x18, EBX, EBP and EDI are 0 and paging
# is off (the 32-bit boot protocol), else 1
BOOT32 = bytes.fromhex(
    "8b8602020000 3d48647253 751f"  # mov eax, [esi + 0x202]; cmp eax, "HdrS"; jne fail
    "8cc8 83f810 7518 8cd8 83f818 7511"  # mov eax, cs; cmp eax, 0x10; jne; mov eax, ds; cmp eax, 0x18; jne
    "09fd 09dd 750b 0f20c0 85c0 7804"  # or ebp, edi; or ebp, ebx; jne; mov eax, cr0; test eax, eax; js
    "b007 eb02 b001 e6f4 f4"  # mov al, 7; jmp over; fail: mov al, 1; out 0xf4, al; hlt
)


def test_a_32_bit_bzimage(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(made.bzimage(xloadflags=0, code=BOOT32.ljust(4096, b"\xf4")))
    assert boot(str(image), memory="64M") == (DebugExit(7), "")


def test_memory_beyond_the_hole(payload: Payload) -> None:
    event, text = boot(payload("bootinfo.elf"), memory="5G")
    assert event == DebugExit(0)
    lost = layout.HIGH_RAM - layout.EBDA
    assert int(facts(text)["ram"], 16) == (5 << 30) - lost


def test_bzimage_enters_in_64_bits(tmp_path: Path) -> None:
    """A made-up bzImage: what its code finds in the zero page comes back as the status."""
    code = bytes.fromhex(
        "48b80000000001000000"  # mov $0x100000000, %rax: faults the decoder outside 64-bit mode
        "8b8628020000"  # mov 0x228(%rsi), %eax: cmd_line_ptr
        "0fb600"  # movzbl (%rax), %eax: the first letter
        "e7f4"  # out %eax, $0xf4
        "f4"
    )
    image = bytearray(5 * 512 + 0x200)
    image[0x1F1] = 4
    pack_into("<I", image, 0x1F4, (0x200 + 512) // 16)
    image[0x200:0x202] = b"\xeb\x66"
    image[0x202:0x206] = b"HdrS"
    pack_into("<H", image, 0x206, 0x20F)
    image[0x211] = 1
    pack_into("<I", image, 0x22C, 0x7FFF_FFFF)
    pack_into("<IBBHI", image, 0x230, 0x200000, 1, 21, 1, 2047)
    pack_into("<QI", image, 0x258, 0x1000000, 0x10000)
    path = tmp_path / "bzImage"
    path.write_bytes(bytes(image) + code.ljust(512, b"\x90"))
    assert boot(str(path), memory="32M", cmdline="Z and more") == (DebugExit(ord("Z")), "")


def test_too_small_a_memory_says_how_much(payload: Payload) -> None:
    with pytest.raises(CannotRun, match=r"too small.*needs at least 2M"):
        boot(payload("hello.elf"), memory="1M")


@pytest.mark.parametrize("cpus", [2, 8])
def test_smp(payload: Payload, cpus: int) -> None:
    assert boot(payload("smp.elf"), cpus=cpus, cmdline=f"cpus={cpus}") == (DebugExit(0), f"cpus {cpus:#x}\n")


@pytest.mark.parametrize("topology", [Topology(cores=255), Topology(sockets=3, cores=85)])
def test_every_vcpu_that_there_may_be(payload: Payload, topology: Topology) -> None:
    """With APIC IDs beyond an xAPIC's, too."""
    end = boot(payload("smp.elf"), cpus=255, topology=topology, memory="16M", cmdline="cpus=255")
    assert end == (DebugExit(0), "cpus 0xff\n")


def test_pinned_vcpus(payload: Payload) -> None:
    cpu = min(os.sched_getaffinity(0))
    assert boot(payload("smp.elf"), cpus=2, pin=(cpu,)) == (DebugExit(0), "cpus 0x2\n")
    with pytest.raises(CannotRun, match="there is no CPU 8191"):
        boot(payload("smp.elf"), cpus=2, pin=(8191,))
