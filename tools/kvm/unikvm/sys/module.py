# SPDX-License-Identifier: GPL-2.0-only
"""Inserts kernel modules by system call: a machine need not have kmod."""

from __future__ import annotations

import ctypes
import os

from unikvm.errors import CannotRun

_SYS_FINIT_MODULE = 313  # x86-64


def insert(path: str, parameters: str = "") -> None:
    """Insert the module in the file `path`; `parameters` as insmod takes them. CannotRun with the kernel's reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    try:
        with open(path, "rb") as file:
            failed = libc.syscall(
                ctypes.c_long(_SYS_FINIT_MODULE), ctypes.c_int(file.fileno()), parameters.encode(), ctypes.c_int(0)
            )
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from error
    if failed:
        raise CannotRun(f"the kernel does not take {path}: {os.strerror(ctypes.get_errno())}", hint="see dmesg")
