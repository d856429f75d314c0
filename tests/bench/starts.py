# SPDX-License-Identifier: GPL-2.0-only
"""Guests as they start: with the host's files as their root beside virtme-ng, and many side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.hosts import BENCH, TREE, Figures, Guest, Stalled, host_config, in_host, python_in, say
from unikvm.hostvm.host import HostVm
from unikvm.images.artifacts import LAUNCHER
from unikvm.images.guest import busybox_binary
from unikvm.units import GIB

GUESTS = 20
MEMORY = {"unikvm": 64, "qemu": 72}  # MiB: with less, microvm's guest does not boot
VIRTME_NG = "virtme-ng==1.42"


def virtme_ng() -> str:
    """The folder that virtme-ng is installed in, once."""
    path = BENCH / VIRTME_NG
    if not path.is_dir():
        say(f"installing {VIRTME_NG}")
        work = BENCH / f"{VIRTME_NG}.{os.getpid()}"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(work), VIRTME_NG], check=True)
        work.rename(path)
    return str(path)


def bench_root() -> Figures:
    """10. The host's files as root: to the first line of a command, beside virtme-ng. About 8 minutes."""
    guest = Guest()
    place = virtme_ng()
    command = ["-m", "512M", "--", "echo", "first", "line"]
    path = f"PATH={TREE}/tests/bench:{place}/bin:{os.environ['PATH']}"
    virtme = ["env", f"PYTHONPATH={place}", path, "vng", "-r", guest.host_kernel.image, "--busybox", busybox_binary()]
    virtme.append("--qemu-opts=-global virtio-mmio.force-legacy=false")  # virtiofsd knows virtio 1 alone
    virtme += ["-v", "-a", "quiet", "-a", "loglevel=3"]  # without -v the command's output would need a udev in the host
    order = {
        "unikvm": [LAUNCHER, "run", "--host", "local", "-q", "--root", "/", *command],
        "virtme_ng": [*virtme, *command],
    }
    piped = {name: ["sh", "-c", '"$@" </dev/null 2>&1 | cat', "sh", *argv] for name, argv in order.items()}
    figures: Figures = {}
    for icount, unit, runs in ((True, "ginsn", 1), (False, "s", 3)):

        def measure(host: HostVm, runs: int = runs) -> Figures:
            found: Figures = json.loads(python_in(host, "boots.py", json.dumps(piped), str(runs), "first line"))
            return found

        found = in_host(host_config(guest, icount=icount), measure)
        figures |= {f"{name}_{unit}": found[f"{name}_ginsn"] for name in order}
        figures[f"ratio_{unit}"] = found["unikvm_ginsn"] / found["virtme_ng_ginsn"]
    return figures


def bench_many() -> Figures:
    """11. Twenty guests side by side, ours of 64 MiB: seconds until all are up, and MB of the host each."""
    guest = Guest(small=True)
    commands = {"unikvm": guest.ours(memory=MEMORY["unikvm"]), "qemu": guest.qemu(MEMORY["qemu"])}

    def measure(host: HostVm) -> Figures:
        figures: Figures = {}
        for vmm, command in commands.items():
            say(f"{GUESTS} guests of {MEMORY[vmm]} MiB: {vmm}")
            try:
                found: Figures = json.loads(python_in(host, "many.py", json.dumps(command), str(GUESTS)))
            except Stalled as error:
                say(f"{vmm}: {error}")
                continue
            figures |= {f"{vmm}_{name}": value for name, value in found.items()}
        for name in ("seconds", "mb_less", "mb_share"):
            if f"unikvm_{name}" in figures and f"qemu_{name}" in figures:
                figures[f"ratio_{name}"] = figures[f"unikvm_{name}"] / figures[f"qemu_{name}"]
        return figures

    return in_host(host_config(guest, icount=False, memory=4 * GIB), measure)
