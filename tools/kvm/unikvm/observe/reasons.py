# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel half must know of KVM's private structs: where an exit's reason and a vCPU's VM are, from BTF."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import Kernel
from unikvm.images.modules import decompressed, resolve
from unikvm.images.vmlinux import vmlinux
from unikvm.observe.btf import Btf, section

# unikvm.ko's parameter, KVM's module, and the struct member whose offset it wants.
PLACES = (
    ("svm_vmcb", "kvm-amd", "vcpu_svm", "vmcb"),
    ("vmx_exit_reason", "kvm-intel", "vcpu_vmx", "exit_reason"),
    ("vcpu_kvm", "kvm", "kvm_vcpu", "kvm"),
)


def module_parameters(kernel: Kernel) -> str:
    """Parameters for unikvm.ko on `kernel`; empty where the kernel's BTF cannot be read. Kept in the cache."""
    names = (kernel.release, cache.identity(kernel.image), kernel.modules, repr(PLACES))
    note = cache.entry("btf", cache.digest(*names))
    if os.path.exists(note):
        with open(note, encoding="ascii") as file:
            return file.read()
    try:
        parameters = _read(kernel)
    except CannotRun:
        return ""  # not kept: it may be a decompressor that is not installed
    cache.write(note, [parameters.encode()])
    return parameters


def _read(kernel: Kernel) -> str:
    image = vmlinux(kernel.image)
    with open(image, "rb") as file:
        base = Btf(section(image, file.read()))
    words = []
    for parameter, module, struct, member in PLACES:
        try:
            paths = resolve(kernel.modules, kernel.release, [module])
        except CannotRun:
            continue  # a kernel for one vendor
        offset = None
        if paths:  # none: it is built in
            offset = Btf(section(paths[-1], decompressed(paths[-1])), base.strings).member_offset(struct, member)
        if offset is None:  # vmlinux has it, and the module's BTF leaves it out
            offset = base.member_offset(struct, member)
        if offset is not None:
            words.append(f"{parameter}={offset}")
    return " ".join(words)
