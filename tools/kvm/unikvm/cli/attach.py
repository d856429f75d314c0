# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm attach`: plug a device into a running guest; prints the address that the guest finds it at.

examples:
  unikvm attach lab --disk data.img      of the guest that `unikvm run -n lab` started
  unikvm attach lab --disk base.qcow2,ro --net user --forward 8080:80

`unikvm detach` takes a device out again.
"""

from __future__ import annotations

import argparse
import os
import sys

from unikvm.cli.options.disks import parse_disk
from unikvm.cli.options.values import check_image
from unikvm.control import client
from unikvm.errors import CannotRun, UnikvmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the guest (default: the only one that runs)")
    parser.add_argument("-d", "--disk", metavar="FILE", action="append", default=[], help="as of `unikvm run`")
    parser.add_argument("--net", metavar="KIND", help="as of `unikvm run`: user, tap[=NAME] or hub=NAME")
    parser.add_argument("--forward", metavar="H:G", action="append", default=[], help="with --net user")


def main(args: argparse.Namespace) -> int:
    devices: list[dict[str, object]] = []
    how = ""
    for text in args.disk:
        disk = parse_disk(text)
        check_image(disk.path)
        devices.append({"disk": disk.replace(path=os.path.abspath(disk.path)).asdict()})
    if args.net or args.forward:
        from unikvm.cli.options.network import parse, setting

        net = parse(args.net or "none", tuple(args.forward))
        how = setting(net)
        devices.append({"net": net.asdict()})
    if not devices:
        raise CannotRun("what is to be plugged in?", hint="--disk FILE or --net user")
    name = client.choose(args.name)
    address = ""
    for device in devices:
        address = str(client.call(name, "attach", seconds=client.SECONDS, **device))
        print(address, flush=True)
    if how:  # the interface is the last of them
        set_up(name, address, how)
    return 0


def set_up(name: str, address: str, how: str) -> None:
    """Have the guest's agent give the interface its address. It is plugged in all the same: a line where that fails."""
    from unikvm.cli.remote import connect
    from unikvm.remote.command import RemoteCommand

    try:
        with connect(name) as stream:
            RemoteCommand(stream, ["net", address, how], stdin=-1).run()
    except UnikvmError as error:
        sys.stderr.write(f"unikvm: the interface is there, and has no address yet: {error}\n")
