# SPDX-License-Identifier: GPL-2.0-only
"""How passt is started, and what --forward may say."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from unikvm.errors import CannotRun
from unikvm.vhost import forward, passt


def test_forwards() -> None:
    assert forward.parse_forward("8080:80") == (False, 8080, 80)
    assert forward.parse_forward("1:65535/tcp") == (False, 1, 65535)
    assert forward.parse_forward("53:53/udp") == (True, 53, 53)


@pytest.mark.parametrize(
    "text", ["", "80", "80:", ":80", "0:80", "80:65536", "80:80/", "80:80/sctp", "a:b", "1:2:3", "-1:2"]
)
def test_bad_forwards(text: str) -> None:
    with pytest.raises(CannotRun, match="no two ports"):
        forward.parse_forward(text)


def test_arguments() -> None:
    argv = passt.arguments("/usr/bin/passt", 7, ["8080:80", "53:5353/udp"], routed=True, routed6=True)
    assert argv[0] == "/usr/bin/passt"
    assert argv[argv.index("--fd") + 1] == "7"
    assert argv[argv.index("--tcp-ports") + 1] == "127.0.0.1/8080:80"
    assert argv[argv.index("--udp-ports") + 1] == "127.0.0.1/53:5353"
    assert not {"--interface", "--outbound-if4", "--ipv4-only"} & set(argv)
    assert passt.arguments("passt", 7, [], routed=True, routed6=False)[-1] == "--ipv4-only"
    assert passt.arguments("passt", 7, [], routed=False, routed6=False)[-3:] == ["--ipv4-only", "--interface", "lo"]
    assert passt.arguments("passt", 7, [], routed=False, routed6=True)[-2:] == ["--outbound-if4", "lo"]


def test_default_route(tmp_path: Path) -> None:
    table = tmp_path / "route"
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    table.write_text(head + "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
    assert not passt.has_route(str(table))
    with table.open("a") as file:
        file.write("eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
    assert passt.has_route(str(table))
    assert not passt.has_route(str(tmp_path / "none"))


def test_default_route_of_ipv6(tmp_path: Path) -> None:
    table = tmp_path / "ipv6_route"
    none, zero = "0" * 32, "0" * 8
    prefix = f"fd{'0' * 30} 40 {none} 00 {none} 00000100 00000001 {zero} 00000001 eth0\n"
    reject = f"{none} 00 {none} 00 {none} ffffffff 00000001 {zero} 00200200 lo\n"
    table.write_text(prefix + reject)
    assert not passt.has_route6(str(table))
    table.write_text(prefix + f"{none} 00 {none} 00 fd{'0' * 29}1 00000400 00000001 {zero} 00000003 eth0\n" + reject)
    assert passt.has_route6(str(table))
    assert not passt.has_route6(str(tmp_path / "none"))


def test_a_host_without_passt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match="needs passt or slirp4netns"):
        passt.serve()


@pytest.mark.parametrize(("kind", "suffix"), [(socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, "/udp")])
def test_a_port_that_somebody_has(kind: int, suffix: str) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((forward.LOOPBACK, 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(CannotRun, match=f"port {port}: Address already in use"):
            forward.check_free(f"{port}:80{suffix}")
    forward.check_free(f"{port}:80{suffix}")
