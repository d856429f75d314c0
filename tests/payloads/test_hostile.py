# SPDX-License-Identifier: GPL-2.0-only
"""Guests that mean harm: garbage in every register, forged rings, resets in the middle of work, floods.

Each attack is on every device of a machine but one disk, which has to go on working; afterwards the VMM lives, has not
grown, and is idle.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unikvm.errors import TIMEOUT
from unikvm.machine.machine import Machine
from unikvm.sys.vhost import VhostVsock
from unikvm.uapi.virtio import VIRTIO_ID_VSOCK
from unikvm.vhost import ninep, storage, virtiofsd
from unikvm.virtio import blocking
from unikvm.virtio.blk import Blk
from unikvm.virtio.console import Console
from unikvm.virtio.device import VirtioDevice
from unikvm.virtio.fs import Fs
from unikvm.virtio.net import Net
from unikvm.virtio.p9 import P9
from unikvm.virtio.port import Port
from unikvm.virtio.rng import Rng
from unikvm.virtio.vhostblk import VhostBlk
from unikvm.virtio.vsock import Vsock

MAIN = Path(__file__).resolve().parents[2] / "tools/kvm/unikvm/__main__.py"
SECONDS = 600.0
SEEDS = (1, 2, 3)
TRANSPORTS = ("pci", "mmio")
PAGE = 4096
GROWTH = 24 << 20  # bytes that a run may leave in use
IDLE_SECONDS = 0.4
BUSY = 0.1  # of a processor: more is not idle


class Everything:
    """One of each device, and what is at their other ends. `said`: what the user was told."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.got = 0  # bytes from the console
        self._folder = folder
        self._source, self._typing = os.pipe()
        self._reader, self._sink = os.pipe()
        os.set_blocking(self._reader, False)

    def devices(self) -> tuple[VirtioDevice, ...]:
        from unikvm.virtio import hub

        say = self.said.append
        (self._folder / "hub").mkdir()
        place = hub.Hub(str(self._folder / "hub"))
        console = Console(Port(source=self._source, sink=self._sink), [Port("one", sink=self._sink)])
        devices: list[VirtioDevice] = [Rng(), console, Net(place, lambda: place, mtu=hub.MTU, mac=bytes(6), say=say)]
        devices.insert(0, Blk(self.image("attacked"), queues=2))
        devices.append(P9("files", ninep.serve(str(self._folder), readonly=True), say=say))
        if os.access(VhostVsock.device, os.R_OK | os.W_OK):
            kernel = VhostVsock()
            devices.append(Vsock(kernel, next(cid for cid in range(1 << 20, 1 << 30) if kernel.set_cid(cid))))
        binary = virtiofsd.find()
        if binary:
            devices.append(Fs("tag", virtiofsd.serve(binary, str(self._folder), readonly=True), say=say))
        if shutil.which(storage.BINARY):
            backend = storage.serve(self.image("there"), kind="raw", readonly=False, writethrough=True)
            devices.append(VhostBlk(backend, say=say))
        devices.append(Blk(self.image("witness")))
        return tuple(devices)

    def image(self, name: str) -> str:
        path = self._folder / name
        path.write_bytes(bytes(1 << 20))
        return str(path)

    def read_slowly(self) -> None:
        """What the console's reader does."""
        try:
            self.got += len(os.read(self._reader, 4096))
        except BlockingIOError:
            pass

    def close(self) -> None:
        for fd in (self._source, self._typing, self._reader, self._sink):
            os.close(fd)


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[Everything]:
    it = Everything(tmp_path)
    yield it
    it.close()


def resident() -> int:
    """Bytes of memory that this process has, without guests'."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def idle(seconds: float = IDLE_SECONDS) -> float:
    """What part of a processor this process takes."""
    before = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - before) / seconds


def attack(
    payload: Callable[[str], str],
    everything: Everything,
    words: str,
    *,
    transport: str = "pci",
    testdev: bool = False,
    guest: str = "hostile.elf",
    watch: Callable[[bytearray], object] = len,
) -> None:
    """`watch` sees what the console has said so far, again and again."""
    before = resident()
    with Machine(
        kernel=payload(guest),
        cmdline=f"{words} {transport}",
        console="serial",
        memory="16M",
        transport=transport,
        devices=everything.devices(),
        say=everything.said.append,
        testdev=testdev,
    ) as machine:
        machine.start()
        end = time.monotonic() + SECONDS
        while not machine.console.endswith(b"\nalive\n"):
            everything.read_slowly()
            watch(machine.console)
            assert machine._events.empty(), (machine.wait(), bytes(machine.console[-200:]))
            assert time.monotonic() < end, bytes(machine.console[-200:])
            time.sleep(0.01)
        busy = idle()
        assert machine._events.empty(), machine.wait()
        assert busy < BUSY, f"{busy:.0%} of a processor is busy with a guest that sleeps"
        assert resident() - before < GROWTH


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["config", "registers"])
def test_garbage(payload: Callable[[str], str], everything: Everything, what: str, seed: int) -> None:
    attack(payload, everything, f"{what} seed={seed}")


@pytest.mark.parametrize("seed", SEEDS)
def test_garbage_over_mmio(payload: Callable[[str], str], everything: Everything, seed: int) -> None:
    attack(payload, everything, f"registers seed={seed}", transport="mmio")


@pytest.mark.parametrize("testdev", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_garbage_to_ports(payload: Callable[[str], str], everything: Everything, seed: int, testdev: bool) -> None:
    attack(payload, everything, f"ports seed={seed}", testdev=testdev)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_forged_rings(payload: Callable[[str], str], everything: Everything, transport: str) -> None:
    attack(payload, everything, "rings", transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_resets_in_the_middle(payload: Callable[[str], str], everything: Everything, transport: str) -> None:
    attack(payload, everything, "resets seed=5", transport=transport)


def test_doorbells_without_end(payload: Callable[[str], str], everything: Everything) -> None:
    attack(payload, everything, "bells")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_console_flood(payload: Callable[[str], str], everything: Everything, transport: str) -> None:
    """What its reader does not take stays in the guest's memory."""
    attack(payload, everything, "flood", transport=transport)
    assert everything.got > 1 << 16


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, flushes of the attacked disk do not return, as on a network file system whose server is gone."""
    it = threading.Event()
    flush = os.fdatasync

    def slowly(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/attacked"):
            it.wait()
        flush(fd)

    monkeypatch.setattr(os, "fdatasync", slowly)
    yield it
    it.set()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_disk_that_does_not_answer(
    payload: Callable[[str], str], everything: Everything, gate: threading.Event, transport: str
) -> None:
    """Another disk and the console go on, and a reset of the disk is complete when its flush is."""

    def watch(console: bytearray) -> None:
        if console.endswith(b"waiting\n") and not gate.is_set():
            time.sleep(0.2)
            gate.set()

    attack(payload, everything, "", transport=transport, guest="hang.elf", watch=watch)
    assert gate.is_set()
    assert everything.got, "what the console took has to come out"


def test_a_run_ends_with_a_disk_that_does_not_answer(
    payload: Callable[[str], str], everything: Everything, gate: threading.Event
) -> None:
    with Machine(
        kernel=payload("hang.elf"), cmdline="pci", console="serial", memory="16M", devices=everything.devices()
    ) as machine:
        machine.start()
        machine.expect(b"waiting\n", SECONDS)
        begin = time.monotonic()
    assert time.monotonic() - begin < 4 * blocking.PATIENCE
    assert not gate.is_set()


@pytest.mark.skipif(not os.access(VhostVsock.device, os.R_OK | os.W_OK), reason=f"no {VhostVsock.device} here")
@pytest.mark.parametrize("what", ["registers", "rings", "resets seed=5", "bells"])
def test_the_kernels_sockets(payload: Callable[[str], str], everything: Everything, what: str) -> None:
    """The device that the kernel serves, alone, so that it is soon done in a host VM."""
    attack(payload, everything, f"{what} only={VIRTIO_ID_VSOCK}")


@pytest.mark.parametrize("end", ["--timeout", "SIGTERM"])
def test_a_reader_who_stands_still_does_not_keep_the_run_from_ending(payload: Callable[[str], str], end: str) -> None:
    """The serial port's thread waits for him."""
    arguments = ["run", "--host", "local", "--no-kernel-half", "-p", "out n=100000000 port=0x3f8"]
    arguments += ["--timeout", "10"] if end == "--timeout" else []
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(MAIN), *arguments, payload("storm.elf")],
        stdout=subprocess.PIPE,
        pipesize=2 * PAGE,
    )
    assert process.stdout is not None
    try:
        while end == "SIGTERM" and process.poll() is None:
            (waiting,) = struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)))
            if waiting > PAGE:
                process.terminate()
                break
            time.sleep(0.05)
        status = process.wait(SECONDS)
    finally:
        process.kill()
    assert len(process.stdout.read()) > PAGE, "it did not have to wait"
    assert status == TIMEOUT if end == "--timeout" else status


def test_a_reader_who_has_gone_does_not_end_the_run(payload: Callable[[str], str]) -> None:
    command = [sys.executable, "-I", "-S", str(MAIN), "run", "--host", "local", "--no-kernel-half"]
    with subprocess.Popen(
        [*command, "-p", "out n=10000 port=0x3f8", payload("storm.elf")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(SECONDS) == 0
