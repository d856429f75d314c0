# SPDX-License-Identifier: GPL-2.0-only
"""A host VM at work: commands, bytes, terminals, files."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from unikvm.errors import CannotRun, UnikvmError
from unikvm.hostvm.config import HostConfig
from unikvm.hostvm.host import HostVm


def test_the_kernel_is_the_one_asked_for_and_has_kvm(host: HostVm, host_config: HostConfig) -> None:
    done = host.exec(["/bin/sh", "-c", "uname -r; test -c /dev/kvm"])
    assert (done.status, done.stdout.decode().strip()) == (0, host_config.kernel.release)


def test_init_is_the_first_process_and_reaps(host: HostVm) -> None:
    script = "(sleep 0.1 & ); (sleep 0.1 & ); sleep 0.6; cat /proc/[0-9]*/status"
    states = [line for line in host.exec(["/bin/sh", "-c", script]).stdout.splitlines() if line.startswith(b"State:")]
    assert states
    assert not [line for line in states if b"zombie" in line]


def test_statuses_and_signals(host: HostVm) -> None:
    assert host.exec(["/bin/sh", "-c", "exit 255"]).status == 255
    done = host.exec(["/bin/sh", "-c", "kill -9 $$"])
    assert (done.signal, done.shell_status) == (signal.SIGKILL, 137)


def test_bytes_are_exact(host: HostVm) -> None:
    data = os.urandom(1_500_000)
    done = host.exec(["tee", "/dev/stderr"], stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == data


def test_output_before_death_is_kept(host: HostVm) -> None:
    done = host.exec(["/bin/sh", "-c", "head -c 60000 /dev/zero; kill -9 $$"])
    assert (len(done.stdout), done.signal) == (60000, signal.SIGKILL)


def test_many_commands_on_one_host(host: HostVm) -> None:
    for number in range(10):
        assert host.exec(["/bin/sh", "-c", f"exit {number}"], stdin=b"unread" * 1000).status == number


def test_arguments_directory_and_environment(host: HostVm) -> None:
    argv = ["/bin/sh", "-c", 'pwd; echo "$X"; for a; do echo "[$a]"; done', "sh", "a b", "", "%41\n"]
    done = host.exec(argv, cwd="/usr/bin", env={"X": "1 2"})
    assert done.stdout == b"/usr/bin\n1 2\n[a b]\n[]\n[%41\n]\n"


def test_no_such_command(host: HostVm) -> None:
    with pytest.raises(CannotRun, match=r"in the host VM: /no/such .*No such file"):
        host.exec(["/no/such"], stdin=b"x" * 100_000)
    assert host.exec(["cat"], stdin=b"mine").stdout == b"mine"


def test_time_out(host: HostVm) -> None:
    done = host.exec(["sleep", "100"], timeout=0.5)
    assert (done.timed_out, done.signal) == (True, signal.SIGTERM)


def test_the_machine_is_read_only_and_forgets(host: HostVm, shared: Path, tmp_path: Path) -> None:
    target, kept = tmp_path / "file", shared / "file"
    script = f"echo x > '{target}' && cat '{target}' && echo y > '{kept}' && rm -f {__file__} && ! test -e {__file__}"
    done = host.exec(["/bin/sh", "-c", script])
    assert (done.status, done.stdout) == (0, b"x\n"), done
    assert not target.exists()
    assert os.path.exists(__file__)
    assert kept.read_text() == "y\n"


def test_the_machine_cannot_be_written_below_the_overlay_either(host: HostVm, tmp_path: Path) -> None:
    """What the host sends to the file server of / is refused there, whatever its kernel does."""
    script = f"mkdir /run/root && mount -t virtiofs -o rw root /run/root && touch '/run/root{tmp_path}/x'"
    done = host.exec(["/bin/sh", "-c", script])
    assert done.status != 0
    assert not list(tmp_path.iterdir())


def test_results_are_handed_over(host: HostVm) -> None:
    assert host.exec(["/bin/sh", "-c", "printf 'a\\0b\\nc %%' > /run/result"]).status == 0
    assert host.read("/run/result") == b"a\0b\nc %"
    with pytest.raises(UnikvmError, match="No such file"):
        host.read("/run/nothing")


def test_modules(host: HostVm, tmp_path: Path) -> None:
    with pytest.raises(UnikvmError, match="No such file"):
        host.insmod("/no/such.ko")
    (tmp_path / "bad.ko").write_bytes(b"not a module")
    with pytest.raises(UnikvmError, match="Exec format error"):
        host.insmod(str(tmp_path / "bad.ko"))


def test_a_terminal(host: HostVm) -> None:
    read, write = os.pipe()
    shown = bytearray()
    resized = False

    def show(data: bytes) -> None:
        nonlocal resized
        shown.extend(data)
        if b"30 100\r\n" in shown and not resized:
            resized = True
            host.resize(132, 50)
            os.write(write, b"while test \"$(stty size)\" = '30 100'; do sleep 0.1; done; stty size; tty; exit 6\n")

    os.write(write, b"stty size\n")
    done = host.run_interactive(["bash", "--norc", "--noediting", "-i"], size=(100, 30), stdin=read, stdout=show)
    os.close(read)
    os.close(write)
    assert done.status == 6
    assert b"50 132\r\n/dev/pts/" in shown
    assert b"no job control" not in shown


def test_the_clock_is_the_machines(host: HostVm) -> None:
    assert abs(int(host.exec(["date", "+%s"]).stdout) - time.time()) < 30


def test_hosts_do_not_share_their_randomness(host_config: HostConfig) -> None:
    drawn = set()
    for _ in range(2):
        with HostVm(host_config) as own:
            drawn.add(own.exec(["cat", "/proc/sys/kernel/random/uuid"]).stdout)
    assert len(drawn) == 2


def test_two_cpus(host_config: HostConfig) -> None:
    config = HostConfig(kernel=host_config.kernel, init=host_config.init, cpus=2, snapshot=False)
    with HostVm(config) as own:
        assert own.exec(["nproc"]).stdout == b"2\n"
