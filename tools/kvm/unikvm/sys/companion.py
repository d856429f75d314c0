# SPDX-License-Identifier: GPL-2.0-only
"""The kernel half: /dev/unikvm, and the companion of a VM with its accounting (kernel/uapi/unikvm.h)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from unikvm.cstruct import sizeof
from unikvm.errors import CannotRun
from unikvm.record import Record
from unikvm.uapi import unikvm as uapi

DEVICE = "/dev/unikvm"


class Info(Record):
    """What the loaded kernel half says of itself. `build_id`: SHA-1 of its sources, hexadecimal."""

    major: int
    minor: int
    features: int
    release: str
    build_id: str

    @property
    def has_reasons(self) -> bool:
        """Whether it counts exits by their hardware reason."""
        return bool(self.features & uapi.UNIKVM_FEATURE_EXIT_REASONS)


def _open() -> int:
    """A descriptor of /dev/unikvm; -1 where the kernel half is not loaded, CannotRun where it may not be used."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise CannotRun(
            f"cannot open {DEVICE}: {error.strerror}", hint="run as root, or with --no-kernel-half"
        ) from error


def info() -> Info | None:
    """The loaded kernel half, or None where there is none."""
    fd = _open()
    if fd < 0:
        return None
    try:
        return _info(fd)
    finally:
        os.close(fd)


def _info(fd: int) -> Info:
    raw = uapi.unikvm_info(size=sizeof(uapi.unikvm_info))
    try:
        fcntl.ioctl(fd, uapi.UNIKVM_GET_INFO, raw)
    except OSError as error:
        raise CannotRun(f"{DEVICE} is not the kernel half: {error.strerror}", hint="use --no-kernel-half") from error
    release = bytes(raw.release).split(b"\0")[0].decode("utf-8", "replace")
    return Info(raw.abi_major, raw.abi_minor, raw.features, release, bytes(raw.build_id).hex())


def attach(vm_fd: int, *, allow_mismatch: bool = False) -> Companion | None:
    """Attach to the VM `vm_fd` of this process; None where the kernel half is not loaded, or has another VM of it.

    Raises CannotRun when the loaded kernel half is not of this user half, unless `allow_mismatch`.
    """
    fd = _open()
    if fd < 0:
        return None
    try:
        loaded = _info(fd)
        check_match(loaded, allow_mismatch=allow_mismatch)
        request = uapi.unikvm_attach(size=sizeof(uapi.unikvm_attach), vm_fd=vm_fd)
        try:
            return Companion(fcntl.ioctl(fd, uapi.UNIKVM_ATTACH_VM, request), loaded)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return None
            raise CannotRun(f"the kernel half does not take the VM: {error.strerror}") from error
    finally:
        os.close(fd)


def check_match(loaded: Info, *, allow_mismatch: bool = False) -> None:
    """Both halves must be one: the same ABI, and the kernel half built from the sources that lie beside this file.

    The major version of the ABI has to fit in any case. An installed user half compares releases.
    """
    from unikvm.release import in_tree, kernel_build_id, version

    if loaded.major != uapi.UNIKVM_ABI_MAJOR:
        raise CannotRun(
            f"the kernel half {loaded.release} has ABI {loaded.major}.{loaded.minor}, "
            f"this user half needs {uapi.UNIKVM_ABI_MAJOR}.x",
            hint="build both with `make build`, or use --no-kernel-half",
        )
    if allow_mismatch:
        return
    same = loaded.build_id == kernel_build_id() if in_tree() else loaded.release.split("-g")[0] == version()
    if not same:
        mine = "this tree's kernel/" if in_tree() else f"the user half {version()}"
        raise CannotRun(
            f"the loaded kernel half {loaded.release} was not built from {mine}",
            hint="`make build` and load it anew, or --allow-mismatch",
        )


class Companion:
    """The companion of one VM, and its accounting as KVM's vCPUs go on writing it."""

    def __init__(self, fd: int, loaded: Info) -> None:
        self.fd = fd
        self.info = loaded
        size = mmap.PAGESIZE + uapi.UNIKVM_SLOTS * sizeof(uapi.unikvm_slot)
        try:
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError:
            os.close(fd)
            raise

    def area(self) -> uapi.unikvm_area:
        """A copy of the area's head."""
        return uapi.unikvm_area.from_buffer_copy(self._map)

    def slots(self) -> list[uapi.unikvm_slot]:
        """A copy of what is counted for each vCPU that entered its guest since a reset, in order of first entry."""
        area = self.area()
        found = []
        for index in range(area.slots):
            at = area.slot_offset + index * area.slot_size
            if any(self._map[at : at + 8]):  # entries
                found.append(uapi.unikvm_slot.from_buffer_copy(self._map, at))
        return found

    def reset(self) -> None:
        """Forget all that was counted."""
        fcntl.ioctl(self.fd, uapi.UNIKVM_RESET)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)
