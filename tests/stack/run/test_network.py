# SPDX-License-Identifier: GPL-2.0-only
"""The guest's network: an address, names, files both ways, and what a dead back end does."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.run import hosted
from stack.run.hosted import command, run, sh
from unikvm.errors import CANNOT_RUN
from unikvm.hostvm.host import Exit, HostVm

SIZE = 3_000_000  # of the file that is fetched


@pytest.fixture(autouse=True)
def no_orphans(host: HostVm) -> Iterator[None]:
    yield from hosted.no_orphans(host, "passt")


def serving(script: str, directory: str = "/tmp/www") -> str:
    """`script` beside an HTTP server of the host VM, with a file `big`."""
    return (
        f"mkdir -p {directory}; head -c {SIZE} /dev/urandom > {directory}/big; sha256sum < {directory}/big;"
        f"python3 -m http.server -b :: -d {directory} 8000 2>/dev/null & server=$!;"
        f"{script}; status=$?; kill $server; exit $status"
    )


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_the_guest_gets_an_address_and_fetches_a_file(host: HostVm, transport: str) -> None:
    script = "ifconfig eth0 | grep -o addr:10.0.2.15; wget -q -O - http://10.0.2.2:8000/big | sha256sum"
    done = sh(host, serving(command("--net", "user", "--transport", transport, "--", "sh", "-c", script)))
    lines = done.stdout.decode().splitlines()
    assert done.status == 0, done.stderr
    assert lines[1] == "addr:10.0.2.15"
    assert lines[0] == lines[2], "the file is another one in the guest"


def test_ipv6_where_the_host_has_it(host: HostVm) -> None:
    """The guest makes itself an address of the host's network; the router is the host VM's loopback."""
    have = (
        "ip tuntap add net6 mode tap; ip link set net6 up; ip address add fe80::2/64 dev net6 nodad;"
        "ip address add fd07::2/64 dev net6 nodad; ip -6 route add default via fd07::1 dev net6"
    )
    names = "mv /etc/resolv.conf /tmp/names; echo nameserver fd07::53 > /etc/resolv.conf"
    script = (
        "cat /etc/resolv.conf; while ! grep -o ^fd07.*fffe123456 /proc/net/if_inet6; do sleep 0.1; done;"
        "wget -q -O - http://[fd07::1]:8000/big | sha256sum"
    )
    guest = command("--net", "user", "--timeout", "40", "--", "sh", "-c", script)
    done = sh(host, f"{have}; {names}; {serving(guest)}")
    assert sh(host, "ip tuntap del net6 mode tap; mv /tmp/names /etc/resolv.conf").status == 0
    digest, server, address, *fetched = done.stdout.decode().splitlines()
    assert server == "nameserver fd07::53"  # the only one, of the router's advertisement
    assert address == "fd07000000000000505400fffe123456", done.stderr
    assert fetched == [digest], done.stderr


NAMES = """\
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\\0", 12) + 5
    known = query[end - 4 : end - 2] == b"\\0\\1"  # an A record: of IPv6 it knows nothing
    head = query[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([known]) + bytes(4)
    record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + bytes([10, 0, 2, 2])
    server.sendto(head + query[12:end] + (record if known else b""), client)
"""
IN_GUEST = """\
import socket, urllib.request
print(open("/etc/resolv.conf").read().strip())
print(urllib.request.urlopen("http://www.example:8000/big").status)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
message, client = server.recvfrom(99)
print(message.decode())
server.sendto(b"reply", client)
"""
ASK = """\
import socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.connect(("127.0.0.1", 5353))
for _ in range(60):
    try:
        client.send(b"question")
        print(client.recv(99).decode())
        break
    except OSError:
        time.sleep(0.5)
"""


@pytest.fixture
def without_passt(host: HostVm) -> Iterator[None]:
    assert sh(host, "mv /usr/bin/passt /usr/bin/gone").status == 0
    yield from hosted.no_orphans(host, "slirp4netns")
    assert sh(host, "mv /usr/bin/gone /usr/bin/passt").status == 0


@pytest.mark.usefixtures("without_passt")
def test_slirp_where_there_is_no_passt(host: HostVm, share: Path) -> None:
    done = ask_names_and_udp(host, share, "10.0.2.3")
    assert b"unikvm: no passt here: the network goes by slirp4netns\n" in done.stderr
    assert sh(host, "ls -A /tmp/unikvm-0/slirp").stdout == b""


@pytest.mark.usefixtures("without_passt")
def test_kill_9_of_the_front_end_leaves_no_slirp(host: HostVm) -> None:
    """`without_passt` looks."""
    guest = command("--net", "user", "--", "sleep", "60")
    done = sh(host, f"{guest} & while ! pgrep slirp4netns; do sleep 0.1; done; sleep 1; kill -9 $!; wait $!")
    assert done.status == 128 + 9


def test_names_and_udp_with_the_hosts_root(host: HostVm, share: Path) -> None:
    ask_names_and_udp(host, share, "10.0.2.2")


def ask_names_and_udp(host: HostVm, share: Path, server: str) -> Exit:
    """The guest asks the host VM's name server, which listens on the loopback there; a UDP port leads to the guest."""
    for name, text in (("names", NAMES), ("guest", IN_GUEST), ("ask", ASK)):
        (share / f"{name}.py").write_text(text)
    guest = command("--net", "user", "--forward", "5353:53/udp", "--root", "/", "--", "python3", f"{share}/guest.py")
    resolver = "rm -f /etc/resolv.conf; echo nameserver 127.0.0.1 > /etc/resolv.conf"
    both = f"{{ {guest} & python3 {share}/ask.py; wait $!; }}"
    done = sh(host, f"{resolver}; python3 {share}/names.py & names=$!; {serving(f'{both}; kill $names')}")
    lines = done.stdout.decode().splitlines()[1:]
    assert sorted(lines) == sorted([f"nameserver {server}", "200", "question", "reply"]), done.stderr
    return done


def test_a_forwarded_port(host: HostVm) -> None:
    """A server in the guest, its client in the host VM; large data go that way too. What comes before the guest is up
    gets no answer."""
    serve = f"head -c {SIZE} /dev/urandom > /big; sha256sum < /big; httpd -p 80 -h /; sleep 70"
    fetch = (
        "import hashlib, time, urllib.request\n"
        "end = time.monotonic() + 60; data = b''\n"
        "while not data and time.monotonic() < end:\n"
        "    time.sleep(0.5)\n"
        "    try: data = urllib.request.urlopen('http://127.0.0.1:8080/big', timeout=5).read()\n"
        "    except OSError: pass\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    guest = command("--net", "user", "--forward", "8080:80", "--", "sh", "-c", serve)
    done = sh(host, f"{guest} & python3 -c {shlex.quote(fetch)}; kill $!; wait $!")
    sums = {line.split()[0] for line in done.stdout.decode().splitlines()}
    assert len(sums) == 1, (done.stdout, done.stderr)


def test_kill_9_of_passt_is_got_over(host: HostVm) -> None:
    """What the guest asks for afterwards comes, and its forwarded port is there again."""
    script = (
        "echo found > /index.html; httpd -p 80 -h /;"
        "while :; do timeout 4 wget -q -O - http://10.0.2.2:8000/ | grep -o href=.big; done"
    )
    guest = command("--net", "user", "--forward", "8080:80", "--", "sh", "-c", script)

    def until(condition: str) -> str:
        return f"while kill -0 $guest && ! {condition}; do sleep 0.2; done"

    both = "; ".join(
        (
            f": > /tmp/out; {guest} > /tmp/out 2> /tmp/err & guest=$!",
            until("test -s /tmp/out"),
            "pkill -9 passt",
            until("grep -q 'is back' /tmp/err"),
            "before=$(wc -l < /tmp/out)",
            until("test $(wc -l < /tmp/out) -gt $((before + 1))"),  # one may be from before
            until("wget -q -T 5 -t 1 -O - http://127.0.0.1:8080/"),
            "kill $guest; wait $guest; sort -u /tmp/out; cat /tmp/err >&2",
        )
    )
    done = sh(host, serving(f"{{ {both}; }}"))
    lines = done.stdout.decode().splitlines()
    assert done.status == 0, done.stderr
    assert lines[1:] == ["found", 'href="big'], done.stderr
    assert b"the user network is lost: signal 9 ended it: starting it again" in done.stderr
    assert b"the user network is back" in done.stderr


def test_kill_9_of_the_front_end_leaves_no_passt(host: HostVm) -> None:
    """`no_orphans` looks."""
    guest = command("--net", "user", "--", "sleep", "60")
    done = sh(host, f"{guest} & while ! pgrep passt; do sleep 0.1; done; sleep 1; kill -9 $!; wait $!")
    assert done.status == 128 + 9


TAP = "tap=net7,ip=192.168.7.2/24,gw=192.168.7.1"


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_tap_that_is_made_for_the_run(host: HostVm, transport: str) -> None:
    """Ping, and a large file from the host VM to the guest, segments and checksums left to the last one."""
    script = "ping -c 2 192.168.7.1 >/dev/null && wget -q -O - http://192.168.7.1:8000/big | sha256sum"
    guest = command("--net", TAP, "--transport", transport, "--", "sh", "-c", script)
    done = sh(host, serving(guest))
    assert done.status == 0, done.stderr
    assert len(set(done.stdout.split(b"\n"))) == 2, done.stdout
    assert b"made the interface net7 with 192.168.7.1" in done.stderr
    assert sh(host, "test -e /sys/class/net/net7").status == 1


CHANNELS = """\
import ctypes, fcntl, hashlib, os, socket, struct, urllib.request

GET, SET = 0x3C, 0x3D  # ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def channels(command, combined=0):
    data = (ctypes.c_uint32 * 9)(command, 0, 0, 0, 0, 0, 0, 0, combined)
    fcntl.ioctl(sock, 0x8946, struct.pack("16sQ16x", b"eth0", ctypes.addressof(data)))  # SIOCETHTOOL
    return data[4], data[8]


print(*channels(GET), *sorted(os.listdir("/sys/class/net/eth0/queues")))
for count in (1, 2):
    channels(SET, count)
    for _ in range(3):  # other ports of TCP, other queues
        with urllib.request.urlopen("http://192.168.7.1:8000/big", timeout=20) as file:
            print(channels(GET)[1], hashlib.sha256(file.read()).hexdigest())
"""


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_tap_with_two_queues(host: HostVm, share: Path, transport: str) -> None:
    """The driver takes one for each of its CPUs; with fewer, what the interface hands to the others is not lost."""
    (share / "channels.py").write_text(CHANNELS)
    words = ("--net", f"{TAP},queues=2", "--cpus", "2", "--root", "/", "--transport", transport)
    done = sh(host, serving(command(*words, "--", "python3", f"{share}/channels.py")))
    digest, first, *lines = done.stdout.decode().splitlines()
    assert done.status == 0, done.stderr
    assert first == "2 2 rx-0 rx-1 tx-0 tx-1"
    assert lines == [f"{count} {digest.split()[0]}" for count in (1, 1, 1, 2, 2, 2)]


@pytest.mark.parametrize("queues", ["", "multi_queue"])
def test_a_tap_that_exists(host: HostVm, queues: str) -> None:
    """Its address is its owner's business. From the guest to the host VM this time."""
    make = f"ip tuntap add net8 mode tap {queues} && ip address add 192.168.8.1/24 dev net8 && ip link set net8 up"
    serve = f"head -c {SIZE} /dev/urandom > /big; sha256sum < /big; httpd -p 80 -h /; sleep 70"
    guest = command("--net", "tap=net8,ip=192.168.8.2", "--", "sh", "-c", serve)
    fetch = "while ! wget -q -T 5 -t 1 -O /tmp/big http://192.168.8.2/big; do sleep 0.5; done; sha256sum < /tmp/big"
    done = sh(host, f"{make}; {guest} & {fetch}; kill $!; wait $!; ip tuntap del net8 mode tap {queues}")
    assert done.status == 0, done.stderr
    assert len(set(done.stdout.split(b"\n"))) == 2, (done.stdout, done.stderr)
    assert b"made the interface" not in done.stderr


def test_the_driver_is_loaded_again(host: HostVm) -> None:
    """A reset and a second life, with the ring's position from before forgotten."""
    again = "cd /sys/bus/virtio/drivers/virtio_net; d=$(echo virtio*); echo $d > unbind; echo $d > bind"
    up = "ifconfig eth0 192.168.7.2 netmask 255.255.255.0 up; ping -c 3 192.168.7.1"
    script = f"{again}; {up}; {again}; {up} >/dev/null"
    done = run(host, "--net", TAP, "--", "sh", "-c", script)
    assert done.status == 0, (done.stdout, done.stderr)


def test_two_guests_on_a_hub(host: HostVm) -> None:
    """Without any privilege, and with a guest that was killed before still in the directory."""
    serve = f"head -c {SIZE} /dev/urandom > /big; sha256sum < /big; httpd -p 80 -h /; sleep 70"
    fetch = "while ! wget -q -O - http://10.1.0.1/big > /got; do sleep 1; done; sha256sum < /got"
    killed = command("--net", "hub=lab", "--", "sleep", "60")
    first = command("--net", "hub=lab,ip=10.1.0.1", "--", "sh", "-c", serve)
    second = command("--net", "hub=lab,ip=10.1.0.2", "--", "sh", "-c", fetch)
    kill = f"{killed} & while ! ls /tmp/unikvm-0/hubs/lab/*; do sleep 0.1; done >/dev/null 2>&1; kill -9 $!; wait $!"
    done = sh(host, f"{kill}; {first} & {second}; status=$?; kill $!; wait $!; ls /tmp/unikvm-0/hubs/lab; exit $status")
    assert done.status == 0, done.stderr
    assert len(set(done.stdout.split(b"\n"))) == 2, (done.stdout, done.stderr)


def test_taps_that_cannot_be_had(host: HostVm) -> None:
    def refused(what: str, text: str, undo: str = "true") -> None:
        done = sh(host, f"{what}; {command('--net', 'tap=net9', '--', 'true')}; status=$?; {undo}; exit $status")
        assert done.status == CANNOT_RUN
        assert text in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1

    refused("mv /dev/vhost-net /dev/gone", "modprobe vhost_net", "mv /dev/gone /dev/vhost-net")
    refused("mv /dev/net/tun /dev/gone", "modprobe tun", "mv /dev/gone /dev/net/tun")
    done = sh(host, "ip tuntap add net9 mode tap")
    assert done.status == 0, done.stderr
    done = run(host, "--net", "tap=net9,queues=2", "--", "true")
    assert done.status == CANNOT_RUN
    assert b"not made for so many queues (ip tuntap add net9 mode tap multi_queue" in done.stderr
    assert sh(host, "ip tuntap del net9 mode tap").status == 0
    refused("ip link set lo down; ip link set lo name net9", "has to be a tap")
    assert sh(host, "ip link set net9 down; ip link set net9 name lo; ip link set lo up").status == 0


def test_refusals_are_one_line(host: HostVm) -> None:
    for options, text in (
        (("--net", "carrier-pigeon"), "no such network"),
        (("--net", "user", "--forward", "80"), "no two ports"),
        (("--forward", "80:80"), "is for --net user"),
    ):
        done = run(host, *options, "--", "true")
        assert done.status == CANNOT_RUN
        assert text in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
