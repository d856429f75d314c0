# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel half must know to count exits by their reason: where KVM's private structs keep it, from BTF."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import Kernel
from unikvm.images.modules import decompressed, resolve
from unikvm.images.vmlinux import vmlinux
from unikvm.observe.btf import Btf, section

# unikvm.ko's parameter, KVM's module, and the struct member whose offset it wants.
PLACES = (("svm_vmcb", "kvm-amd", "vcpu_svm", "vmcb"), ("vmx_exit_reason", "kvm-intel", "vcpu_vmx", "exit_reason"))


def module_parameters(kernel: Kernel) -> str:
    """Parameters for unikvm.ko on `kernel`; empty where the kernel has no BTF. Kept in the cache."""
    note = cache.entry("btf", cache.digest(kernel.release, cache.identity(kernel.image), kernel.modules))
    if os.path.exists(note):
        with open(note, encoding="ascii") as file:
            return file.read()
    try:
        parameters = _read(kernel)
    except CannotRun:
        parameters = ""
    cache.write(note, [parameters.encode()])
    return parameters


def _read(kernel: Kernel) -> str:
    image = vmlinux(kernel.image)
    with open(image, "rb") as file:
        base = Btf(section(image, file.read()))
    words = []
    for parameter, module, struct, member in PLACES:
        try:
            path = resolve(kernel.modules, kernel.release, [module])[-1]
        except CannotRun:
            continue  # a kernel for one vendor
        offset = Btf(section(path, decompressed(path)), base.strings).member_offset(struct, member)
        if offset:
            words.append(f"{parameter}={offset}")
    return " ".join(words)
