# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm doctor`: what this machine can do, which way `unikvm run` takes, and what is missing.

examples:
  unikvm doctor
"""

from __future__ import annotations

import argparse
import os
import sys

from unikvm.errors import UnikvmError

Check = tuple[str, str, str]  # name, verdict (ok, slow, missing), explanation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the doctor looks at everything."""


def main(args: argparse.Namespace) -> int:
    kvm, checks = check_kvm()
    checks += [check_kernel_half(), *check_tools(), check_vsock(), check_builds()]
    for name, verdict, text in checks:
        sys.stdout.write(f"{verdict:<8}{name:<16}{text}\n")
    sys.stdout.write(f"\n{advice(kvm)}\n")
    return 0


def check_kvm() -> tuple[str, list[Check]]:
    """What /dev/kvm is (none, emulated, hardware), measured with a payload."""
    from unikvm.machine.probe import EMULATED_BELOW_MIPS, has_hardware_flag, measure_mips

    flag = has_hardware_flag()
    cpu: Check = (
        "processor",
        "ok" if flag else "slow",
        "has svm or vmx" if flag else "shows neither svm nor vmx: no hardware virtualisation",
    )
    try:
        mips = measure_mips()
    except UnikvmError as error:
        return "none", [cpu, ("/dev/kvm", "missing", str(error))]
    if mips < EMULATED_BELOW_MIPS:
        text = f"runs a payload at {mips:.1f} MIPS: an emulated KVM; payloads work, Linux would take an hour"
        return "emulated", [cpu, ("/dev/kvm", "slow", text)]
    return "hardware", [cpu, ("/dev/kvm", "ok", f"runs a payload at {mips:.0f} MIPS")]


def check_kernel_half() -> Check:
    import unikvm.sys.companion as companion

    try:
        info = companion.info()
    except UnikvmError as error:
        return ("kernel half", "missing", str(error))
    if info is None:
        return ("kernel half", "missing", "no /dev/unikvm on this machine: not needed with a host VM")
    try:
        companion.check_match(info)
    except UnikvmError as error:
        return ("kernel half", "slow", str(error))
    if not info.has_reasons:
        return ("kernel half", "slow", f"{info.release}, loaded without offsets from BTF: exits have no reasons")
    return ("kernel half", "ok", info.release)


def check_tools() -> list[Check]:
    """What a host VM needs."""
    from unikvm.sys.process import find_program
    from unikvm.vhost import passt, slirp
    from unikvm.vhost.storage import BINARY

    checks: list[Check] = []
    qemu = find_program("qemu-system-x86_64")
    checks.append(("QEMU", "ok", qemu) if qemu else ("QEMU", "missing", "for host VMs: install qemu-system-x86"))
    checks.append(check_virtiofsd())
    storage = find_program(BINARY)
    checks.append(("storage daemon", "ok", storage) if storage else ("storage daemon", "missing", "raw disks only"))
    user_network = find_program(passt.PROGRAM) or find_program(slirp.PROGRAM)
    checks.append(
        ("user network", "ok", user_network)
        if user_network
        else ("user network", "missing", "no --net user: install passt")
    )
    return checks


def check_virtiofsd() -> Check:
    """The file server, and the name spaces that it needs: without root, user name spaces."""
    from unikvm.vhost import virtiofsd

    daemon = virtiofsd.find()
    if not daemon:
        return ("virtiofsd", "missing", "--root, --rwdir and a host VM take 9p, which is slower")
    try:
        virtiofsd.try_out(daemon)
    except UnikvmError as error:
        return ("virtiofsd", "slow", f"a host VM takes 9p, which is slower: {error}")
    return ("virtiofsd", "ok", daemon)


def check_vsock() -> Check:
    """What exec, shell and cp need of a host."""
    from unikvm.sys.vhost import VhostVsock

    try:
        VhostVsock().close()
    except UnikvmError as error:
        return ("vsock", "missing", f"no exec, shell and cp with guests here, only in a host VM: {error}")
    return ("vsock", "ok", VhostVsock.device)


def check_builds() -> Check:
    from unikvm.images import artifacts

    try:
        return ("guest init", "ok", artifacts.init_binary())
    except UnikvmError as error:
        return ("guest init", "missing", str(error))


def advice(kvm: str) -> str:
    """Which way `unikvm run` takes here."""
    if kvm == "hardware" and os.geteuid() == 0:
        return "`unikvm run` uses this machine as the host (--host local)."
    if kvm == "hardware":
        return "`unikvm run` boots a host VM under this machine's KVM: only root may load the kernel half here."
    payloads = "payloads run on this machine's emulated KVM, Linux" if kvm == "emulated" else "everything runs"
    return f"`unikvm run`: {payloads} in a host VM that QEMU emulates (AMD SVM with nested paging): slow but true."
