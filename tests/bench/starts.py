# SPDX-License-Identifier: GPL-2.0-only
"""Guests side by side: how long until all are up, and what each takes of the host's memory."""

from __future__ import annotations

import json

from bench.hosts import Figures, Guest, host_config, in_host, python_in
from unikvm.hostvm.host import HostVm
from unikvm.units import GIB

GUESTS, GUEST_MB = 20, 80  # Debian's kernel and an initramfs need 66 MiB


def bench_many() -> Figures:
    """10. Twenty guests of 80 MiB side by side: seconds until all are up, and MB of the host each."""
    guest = Guest()
    lines = bytearray()

    def measure(host: HostVm) -> Figures:
        commands = {"unikvm": guest.ours(memory=GUEST_MB), "qemu": guest.qemu(GUEST_MB)}
        python_in(host, "many.py", json.dumps(commands), str(GUESTS), into=lines.extend, timeout=540)
        found = dict(map(json.loads, lines.decode().splitlines()))
        figures: Figures = {}
        for name in found["unikvm"]:
            figures |= {f"{vmm}_{name}": found[vmm][name] for vmm in commands}
            figures[f"ratio_{name}"] = found["unikvm"][name] / found["qemu"][name]
        return figures

    return in_host(host_config(guest, icount=False, memory=4 * GIB), measure)
