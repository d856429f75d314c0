# SPDX-License-Identifier: GPL-2.0-only
"""PC firmware that starts where a CPU does after a reset: some bytes of our own, and SeaBIOS, which boots a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from unikvm.errors import CannotRun
from unikvm.images.firmware import find_firmware
from unikvm.machine.config import Disk, Firmware
from unikvm.machine.events import DebugExit, Event, Reset
from unikvm.machine.io import IoThread
from unikvm.machine.machine import Machine
from unikvm.machine.vcpu import VcpuThread

Payload = Callable[[str], str]
SECONDS = 120.0
SIZE = 64 << 10
RESET_CODE_AT = SIZE - 16
VARIABLES = bytes(32) + pack("<Q4s", 8192, b"_FVH") + bytes(8148)

# 16-bit code at the reset vector
STATUS_7 = bytes.fromhex("b007 e6f4 f4 ebfd")  # mov al, 7; out 0xf4, al; hlt; jmp to the hlt
TO_THE_START = bytes.fromhex("e90d00")  # jmp to f000:0000
FAST_RESET = bytes.fromhex("b001 e692 f4 ebfd")  # ... out 0x92, al


def rom(tmp_path: Path, code: bytes, start: bytes = b"") -> Firmware:
    """An image with `code` at the reset vector, and `start` at its beginning."""
    image = bytearray(start.ljust(SIZE, b"\xf4"))
    image[RESET_CODE_AT : RESET_CODE_AT + len(code)] = code
    image[-1] = 0
    (tmp_path / "rom.bin").write_bytes(image)
    return Firmware(str(tmp_path / "rom.bin"))


def boot(firmware: Firmware, **fields: object) -> tuple[Event, bytes]:
    fields = {"memory": "32M", "console": "serial", **fields}
    with Machine(firmware=firmware, **fields) as machine:  # type: ignore[arg-type]
        event = machine.run(timeout=SECONDS)
        return event, bytes(machine.console)


@pytest.mark.parametrize("memory", ["1M", "5G"])
def test_the_first_instruction(tmp_path: Path, memory: str) -> None:
    assert boot(rom(tmp_path, STATUS_7), memory=memory) == (DebugExit(7), b"")


def test_port_0x92_resets(tmp_path: Path) -> None:
    event, _ = boot(rom(tmp_path, FAST_RESET))
    assert isinstance(event, Reset)


def test_seabios_boots_a_disk(payload: Payload, tmp_path: Path) -> None:
    """Its boot sector is the flat payload, which prints a line and ends."""
    disk = tmp_path / "disk.img"
    sector = Path(payload("flat.bin")).read_bytes().ljust(510, b"\0") + b"\x55\xaa"
    disk.write_bytes(sector.ljust(1 << 20, b"\0"))
    bios = Firmware(find_firmware("seabios").code, debug=True)
    said: list[str] = []
    event, text = boot(bios, disks=(Disk(str(disk), readonly=True),), cpus=2, say=said.append)
    assert event == DebugExit(7)
    # SeaBIOS prints its last characters ("...\r\n") from its timer, between those of the boot sector.
    _, found, rest = text.partition(b"Booting from Hard Disk")
    assert found
    assert rest.translate(None, b".\r\n") == b"flat"
    assert "firmware: Found 2 cpu(s) max supported 2 cpu(s)" in said
    assert any("ACPI: parse DSDT" in line for line in said)


def test_seabios_without_a_disk() -> None:
    with Machine(firmware=Firmware(find_firmware("seabios").code), memory="32M", console="serial") as machine:
        machine.start()
        machine.expect(b"No bootable device.", timeout=SECONDS)
        machine.stop()


def test_variables_of_one_guest_alone(tmp_path: Path) -> None:
    variables = tmp_path / "vars"
    variables.write_bytes(VARIABLES)
    firmware = rom(tmp_path, STATUS_7).replace(vars=str(variables), keep=True)
    with Machine(firmware=firmware, memory="1M"), pytest.raises(CannotRun, match="in use by another guest"):
        Machine(firmware=firmware, memory="1M")
    assert boot(firmware)[0] == DebugExit(7)
    with pytest.raises(CannotRun, match=r"cannot open .*No such file"):
        Machine(firmware=firmware.replace(vars=str(tmp_path / "none")), memory="1M")


def test_writes_to_the_variables(payload: Payload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload reads what it has written; the file has it all; most writes are no exits, and wait for one timer."""
    exits: list[int] = []
    serve = VcpuThread._serve_mmio

    def counted(thread: VcpuThread, page: memoryview) -> None:
        exits.append(thread.vcpu.index)
        serve(thread, page)

    pending: list[Callable[[], object]] = []
    most = 0
    schedule = IoThread.schedule

    def watched(thread: IoThread, seconds: float, callback: Callable[[], object]) -> None:
        nonlocal most
        pending.append(callback)
        most = max(most, len(pending))

        def fire() -> None:
            pending.remove(callback)
            callback()

        schedule(thread, seconds, fire)

    monkeypatch.setattr(VcpuThread, "_serve_mmio", counted)
    monkeypatch.setattr(IoThread, "schedule", watched)
    variables = tmp_path / "vars"
    variables.write_bytes(VARIABLES)
    firmware = rom(tmp_path, TO_THE_START, Path(payload("flash.bin")).read_bytes())
    assert boot(firmware.replace(vars=str(variables), keep=True)) == (DebugExit(0), b"")
    assert variables.read_bytes()[4096:] == bytes(i & 0xFF for i in range(500)) + b"\x55" + b"\xff" * 3595
    assert len(exits) < 30
    assert most == 1, "one timer, however often the array comes and goes"
