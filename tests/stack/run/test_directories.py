# SPDX-License-Identifier: GPL-2.0-only
"""Directories of the host in the guest: what is read, what is written where, and what a dead file server does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.run import hosted
from stack.run.hosted import command, run, sh
from unikvm.cli.options.directories import GUEST_MODULES_9P
from unikvm.errors import CANNOT_RUN
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import init_binary
from unikvm.images.depmod import indexed
from unikvm.images.guest import MODULES, guest_initramfs
from unikvm.images.kernel import find_kernel
from unikvm.images.vmlinux import vmlinux
from unikvm.vhost import virtiofsd
from unit.vhost.peer import make_qcow2

MANY = 5000  # files: more than a guest reads in a second


@pytest.fixture(autouse=True)
def no_orphans(host: HostVm) -> Iterator[None]:
    yield from hosted.no_orphans(host, "virtiofsd")


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_the_hosts_root(host: HostVm, transport: str) -> None:
    done = run(host, "--root", "/", "--transport", transport, "--", "cat", "/etc/os-release")
    assert (done.status, done.stdout) == (0, Path("/etc/os-release").read_bytes()), done.stderr


def test_what_is_written_to_the_root_does_not_reach_the_host(host: HostVm) -> None:
    done = run(host, "--root", "--", "sh", "-c", "echo x > /etc/evil && rm /etc/passwd && cat /etc/evil")
    assert (done.status, done.stdout) == (0, b"x\n"), done.stderr
    assert sh(host, "test -e /etc/passwd && ! test -e /etc/evil").status == 0


def test_a_writable_directory_and_the_working_directory(host: HostVm, share: Path) -> None:
    """The command begins where the caller stands, which is what it may write to; the rest is where it is here."""
    (share / "in").mkdir()
    script = "pwd; echo through > written && cat written"
    done = run(host, "--root", "--rwdir", str(share), "--", "sh", "-c", script, cwd=str(share / "in"))
    assert (done.status, done.stdout) == (0, f"{share}/in\nthrough\n".encode()), done.stderr
    assert (share / "in/written").read_text() == "through\n"


def test_as_another_user(host: HostVm) -> None:
    script = "id -un; echo $HOME; pwd; test -r /etc/shadow || echo no"
    done = run(host, "--root", "--user", "daemon", "--", "sh", "-c", script, cwd="/usr")
    assert (done.status, done.stdout) == (0, b"daemon\n/usr/sbin\n/usr\nno\n"), done.stderr


def test_another_place_and_environment(host: HostVm, share: Path) -> None:
    script = "echo there > /mnt/deep/er/file; echo $ONE $HOME; pwd"
    options = ("--rwdir", f"/mnt/deep/er={share}", "--env", "ONE=1 2", "--env", "HOME", "--cwd", "/mnt")
    done = run(host, *options, "--", "sh", "-c", script)
    assert (done.status, done.stdout) == (0, b"1 2 /root\n/mnt\n"), done.stderr
    assert (share / "file").read_text() == "there\n"


def test_the_guest_kernels_modules(host: HostVm) -> None:
    """By their names, with what they need and what they say of themselves, as on an installed system."""
    script = "modprobe vxlan && lsmod | grep -o '^udp_tunnel' && modinfo -F name vxlan"
    done = run(host, "--root", "--", "sh", "-c", script)
    assert (done.status, done.stdout) == (0, b"udp_tunnel\nvxlan\n"), done.stderr


def test_refusals_are_one_line(host: HostVm) -> None:
    for options, text in (
        (("--root", "/no/such"), "no such directory"),
        (("--root", "--user", "nobody-knows"), "no such user"),
        (("--rwdir", "/=/tmp"), "no place for it"),
        (("--env", "=x"), "no name"),
    ):
        done = run(host, *options, "--", "true")
        assert done.status == CANNOT_RUN
        assert text in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


def test_kill_9_of_the_file_server_gives_the_guest_errors(host: HostVm, share: Path) -> None:
    """While it reads and writes: the guest's process gets an error, and the run ends with its status."""
    script = f"while echo x >> {share}/grows; do read y < {share}/grows; done 2>/tmp/why; cat /tmp/why; exit 7"
    guest = command("--rwdir", str(share), "--", "sh", "-c", script)
    done = sh(
        host, f"{guest} & while ! test -s {share}/grows; do sleep 0.1; done; sleep 1; pkill -9 virtiofsd; wait $!"
    )
    assert done.status == 7, done.stderr
    assert b"endpoint is not connected" in done.stdout, done.stdout
    assert b"is lost: signal 9 ended it" in done.stderr
    assert (share / "grows").stat().st_size > 2


def test_kill_9_of_the_roots_file_server(host: HostVm, share: Path) -> None:
    """Files that the guest has not seen yet cannot be had any more: an error; SIGBUS where it is code of the shell."""
    for number in range(MANY):
        (share / f"file{number}").write_text("line\n")
    script = f"i=0; while test $i -lt {MANY}; do read x < {share}/file$i || exit 7; echo .; i=$((i+1)); done"
    guest = command("--root", "/", "--", "sh", "-c", script)
    done = sh(host, f"{guest} > /tmp/out & until test -s /tmp/out; do sleep 0.1; done; pkill -9 virtiofsd; wait $!")
    assert done.status in (7, 119), done.stderr
    assert b"is lost: signal 9 ended it" in done.stderr
    assert done.status == 7 or b"ended with status 135" in done.stderr


def test_kill_9_of_the_front_end_leaves_no_file_server(host: HostVm) -> None:
    """`no_orphans` looks."""
    guest = command("--root", "/", "--", "sleep", "60")
    done = sh(host, f"{guest} & while ! pgrep virtiofsd; do sleep 0.1; done; sleep 2; kill -9 $!; wait $!")
    assert done.status == 128 + 9


def test_ends_without_a_command_leave_no_file_server(host: HostVm) -> None:
    assert run(host, "--root", "--timeout", "5", "--", "sleep", "60").status == 124
    assert run(host, "--root", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60").status == 120
    assert run(host, "--root", "-d", "/no/such", "--", "true").status == CANNOT_RUN


def test_a_qcow2_disk_keeps_what_was_written(host: HostVm, share: Path) -> None:
    """Through qemu-storage-daemon, which is told to flush by the guest's power-off; none is left afterwards."""
    disk = share / "disk.qcow2"
    make_qcow2(disk, 64 << 20)
    script = "cat /sys/block/vda/size; echo hello > /dev/vda"
    done = run(host, "-d", str(disk), "--", "sh", "-c", script)
    assert (done.status, done.stdout) == (0, b"131072\n"), done.stderr
    done = run(host, "-d", f"{disk},ro", "--transport", "mmio", "--", "head", "-c", "5", "/dev/vda")
    assert (done.status, done.stdout) == (0, b"hello"), done.stderr
    assert sh(host, "pgrep qemu-storage").status == 1


@pytest.fixture(scope="module")
def knows_9p() -> str:
    """A kernel with 9p, which Debian's cloud kernel is not; and all that is made of it."""
    found = find_kernel("linux-image-amd64")
    vmlinux(found.image)
    indexed(found.modules, found.release)
    guest_initramfs(found, init=init_binary(), modules=(*MODULES, *GUEST_MODULES_9P))
    return found.image


@pytest.fixture
def without_virtiofsd(host: HostVm) -> Iterator[None]:
    places = " ".join(virtiofsd.PLACES)
    assert sh(host, f"for file in {places}; do test ! -e $file || mv $file $file.gone; done").status == 0
    yield
    assert sh(host, f"for file in {places}; do test ! -e $file.gone || mv $file.gone $file; done").status == 0


@pytest.mark.network
@pytest.mark.usefixtures("without_virtiofsd")
def test_9p_where_there_is_no_virtiofsd(host: HostVm, share: Path, knows_9p: str) -> None:
    """The same: a root that forgets, and a directory in which every byte and every name counts."""
    place = share / "nine"
    place.mkdir()
    data = os.urandom(200_000)
    (place / "in").write_bytes(data)
    script = (
        f"echo x > /etc/evil; rm /etc/passwd; cd {place}; cp in out; mkdir -p deep/er; mv out deep/er/moved\n"
        "ln -s er deep/link; echo more >> deep/link/moved; chmod 640 deep/er/moved; rm in; grep -c 9p /proc/mounts"
    )
    done = run(host, "-k", knows_9p, "--root", "--rwdir", str(place), "--", "sh", "-ec", script)
    assert (done.status, done.stdout) == (0, b"1\n"), done.stderr
    assert b"unikvm: no virtiofsd here: directories go by 9p, which is slower\n" in done.stderr
    assert sh(host, "test -e /etc/passwd && ! test -e /etc/evil").status == 0
    assert (place / "deep/er/moved").read_bytes() == data + b"more\n"
    assert (place / "deep/er/moved").stat().st_mode & 0o7777 == 0o640
    assert not (place / "in").exists()
    assert sh(host, "pgrep -f p9/__main_[_]").status == 1


@pytest.mark.usefixtures("without_virtiofsd")
def test_neither_virtiofsd_nor_9p(host: HostVm) -> None:
    done = run(host, "--root", "--", "true")
    assert done.status == CANNOT_RUN
    assert "without virtiofsd a directory needs 9p: the kernel" in done.stderr.decode()
