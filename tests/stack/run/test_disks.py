# SPDX-License-Identifier: GPL-2.0-only
"""Disks that fail, in a Linux guest on a host VM: full file systems, bad blocks, an image that shrinks, a back end that
is killed. Each is the guest's I/O error or nothing at all; never the end of anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.run.hosted import command, sh
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER, init_binary
from unikvm.images.kernel import Kernel
from unit.vhost.peer import make_qcow2

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(kernel: Kernel, share: Path) -> Iterator[HostVm]:
    config = HostConfig(kernel=kernel, init=init_binary(), shares=(str(share),), modules=("null_blk",))
    with HostVm(config) as running:
        yield running


FULL = f"""
mkdir -p /tmp/full && mount -t tmpfs -o size=2m none /tmp/full
truncate -s {16 * MIB} /tmp/full/disk
"""
BAD = """
mount -t configfs none /sys/kernel/config 2>/dev/null
cd /sys/kernel/config/nullb && mkdir bad && cd bad
echo 1 > memory_backed && echo 16 > size && echo +8-15 > badblocks && echo 1 > power || exit
ls /dev | grep -x -e bad -e "nullb$(cat index)"
"""
GUEST = """
dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; echo full $?
dd if=/dev/vda of=/dev/null bs=64k count=1 2>/dev/null; echo readable $?
dd if=/dev/zero of=/dev/vdb bs=64k count=64 conv=fsync 2>/dev/null; echo full qcow2 $?
dd if=/dev/vdc of=/dev/null bs=4k skip=1 count=1 iflag=direct 2>/dev/null; echo bad $?
dd if=/dev/vdc of=/dev/null bs=4k skip=4 count=8 iflag=direct 2>/dev/null; echo good $?
while dd if=/dev/vdd of=/dev/null bs=4k skip=100 count=1 iflag=direct 2>/dev/null; do echo go; sleep 1; done
echo shrunk; echo all is well > /dev/vde
"""


def test_errors_are_the_guests_and_nobody_elses(host: HostVm, share: Path) -> None:
    """One guest with five disks, of which the last one is sound: writing to it works after all the others failed."""
    for name in ("shrinks", "sound"):
        (share / name).write_bytes(bytes(MIB))
    make_qcow2(share / "empty.qcow2", 16 * MIB)
    made = sh(host, f"{FULL} cp {share}/empty.qcow2 /tmp/full/disk.qcow2; {BAD}")
    assert made.status == 0, made.stderr
    device = made.stdout.decode().strip()
    disks = ["/tmp/full/disk", "/tmp/full/disk.qcow2", f"/dev/{device}", f"{share}/shrinks", f"{share}/sound"]
    guest = command(*(word for disk in disks for word in ("-d", disk)), "--", "sh", "-c", GUEST)
    shrink = f"while kill -0 $guest && ! grep -q go /tmp/out; do sleep 0.2; done; truncate -s 4096 {share}/shrinks"
    done = sh(host, f"{guest} > /tmp/out & guest=$!; {shrink}; wait $guest; status=$?; cat /tmp/out; exit $status")
    said, lines = done.stderr.decode(), [line for line in done.stdout.decode().splitlines() if line != "go"]
    assert done.status == 0, said
    assert lines == ["full 1", "readable 0", "full qcow2 1", "bad 1", "good 0", "shrunk"], said
    assert (share / "sound").read_bytes().startswith(b"all is well\n")
    assert "disk /tmp/full/disk: No space left on device: the guest has an I/O error" in said
    assert f"disk /dev/{device}: Input/output error: the guest has an I/O error" in said
    assert f"disk {share}/shrinks: somebody has made the image shorter: the guest has an I/O error" in said


def test_kill_9_of_qemu_storage_daemon_while_a_guest_writes(host: HostVm, share: Path) -> None:
    """With `writethrough` nobody notices: what is read back afterwards is what was written."""
    image = share / "disk.qcow2"
    make_qcow2(image, 64 * MIB)
    write = "dd if=/tmp/data of=/dev/vda bs=64k oflag=direct seek=$i 2>/dev/null || exit 9"
    guest = (
        f"head -c {MIB} /dev/urandom > /tmp/data; i=0; while test $i -lt 800; do {write}; echo .; i=$((i+16)); done;"
        "sha256sum < /tmp/data; i=0; while test $i -lt 800; do"
        "  dd if=/dev/vda bs=64k count=16 skip=$i iflag=direct 2>/dev/null | sha256sum; i=$((i+16)); done"
    )
    run = command("-d", f"{image},writethrough", "--", "sh", "-c", guest)
    begun = "while kill -0 $guest && ! grep -q . /tmp/out; do sleep 0.1; done"
    kill = f"{begun}; sleep 0.5; pkill -9 qemu-storage; sleep 2; pkill -9 qemu-storage"
    end = "wait $guest; status=$?; cat /tmp/out; exit $status"
    done = sh(host, f": > /tmp/out; {run} > /tmp/out & guest=$!; {kill}; {end}")
    lines = done.stdout.decode().splitlines()
    assert done.status == 0, (lines[-3:], done.stderr)
    assert lines.count(".") == 50
    assert len(set(lines)) == 2, "something else was read than was written"
    assert done.stderr.count(b"signal 9 ended it: starting it again") >= 1
    assert b"is back" in done.stderr


GROWING = """\
sizes() { echo $(cat /sys/block/vd?/size); }
sizes
for wanted; do
    tries=0
    until test "$(sizes)" = "$wanted"; do tries=$((tries + 1)); test $tries -lt 600 || exit 9; sleep 0.1; done
    sizes
done
for disk in vda vdb; do
    echo the end of $disk | dd of=/dev/$disk bs=512 seek=$(($(cat /sys/block/$disk/size) - 1)) conv=sync,fsync 2>&1
done | grep -c '1+0 records out\\|0+1 records out'
"""
COMMANDS = """\
unikvm() {{ {launcher} "$@"; }}
line() {{ tries=0; until grep -qx "$1" /tmp/out; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || exit 8; kill -0 $guest || exit 7; sleep 0.1; done; }}
: > /tmp/out; {guest} > /tmp/out & guest=$!
line '2048 2048 8'
unikvm set lab disk={share}/a.raw,size=3M && line '6144 2048 8'
cd {share}; unikvm set disk=b.qcow2,size=5M && line '6144 10240 8'
for wrong in a.raw,size=1M b.qcow2,size=1M b.qcow2 c.raw,size=1M d.raw,size=1M; do unikvm set lab disk=$wrong; done
truncate -s 7M a.raw; unikvm set disk=../{name}/a.raw && line '14336 10240 8'
wait $guest; echo status $?; cat /tmp/out
"""


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_disks_grow_under_a_guest(host: HostVm, share: Path, transport: str) -> None:
    """What a user types, and what the guest's kernel makes of it. The last disk is read-only, and stays as it is."""
    (share / "a.raw").write_bytes(bytes(MIB))
    make_qcow2(share / "b.qcow2", MIB)
    (share / "c.raw").write_bytes(bytes(4096))
    wanted = ["6144 2048 8", "6144 10240 8", "14336 10240 8"]
    script = ["sh", "-c", GROWING, "sh", *wanted]
    disks = [word for name in ("a.raw", "b.qcow2", "c.raw,ro") for word in ("-d", f"{share}/{name}")]
    guest = command("-n", "lab", "--transport", transport, *disks, "--", *script)
    done = sh(host, COMMANDS.format(launcher=LAUNCHER, guest=guest, share=share, name=share.name))
    said = done.stderr.decode()
    assert done.stdout.decode().splitlines() == ["status 0", "2048 2048 8", *wanted, "2"], (done.stdout, said)
    for why in (
        f"disk {share}/a.raw has 3M, and no disk becomes smaller",
        f"disk {share}/b.qcow2 has 5M, and no disk becomes smaller",
        f"disk {share}/b.qcow2 does not grow by itself",
        f"disk {share}/c.raw is read-only",
        f"the guest has no disk {share}/d.raw (its disks: {share}/a.raw, ",
    ):
        assert f"unikvm: {why}" in said, said
    assert (share / "a.raw").read_bytes()[-512:].startswith(b"the end of vda")
