# SPDX-License-Identifier: GPL-2.0-only
"""Finds PC firmware: SeaBIOS and OVMF of this machine's distribution, or else from Debian's packages."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import packages
from unikvm.images.kernel import quiet
from unikvm.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.images.cache import Say

NAMES = ("seabios", "ovmf")

# Where Debian, Fedora, Arch and openSUSE have them: the code, and the variables that go with it.
_SEABIOS = (
    ("usr/share/seabios/bios-256k.bin", ""),
    ("usr/share/qemu/bios-256k.bin", ""),
)
_OVMF = (
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"),
)
_PLACES = {"seabios": _SEABIOS, "ovmf": _OVMF}


class FirmwareImage(Record):
    """`code` is the image, `vars` the fresh variables of a UEFI firmware ("": it has none)."""

    code: str
    vars: str = ""


def find_firmware(spec: str, *, progress: Say = quiet) -> FirmwareImage:
    """The firmware that `spec` names: one of NAMES, or a path. Packages are fetched without root. Raises CannotRun.

    A path of OVMF's code, as its packages name it, brings the variables that lie beside it along.
    """
    if spec in _PLACES:
        return _in(spec, "/") or _from_package(spec, progress)
    if not os.path.isfile(spec):
        hint = "" if "/" in spec else f"{' or '.join(NAMES)}, or the path of an image"
        raise CannotRun(f"no such firmware: {spec or '(an empty name)'}", hint=hint)
    folder, name = os.path.split(os.path.abspath(spec))
    for code, fresh in (("CODE", "VARS"), ("code", "vars")):
        beside = os.path.join(folder, name.replace(code, fresh))
        if code in name and os.path.isfile(beside):
            return FirmwareImage(os.path.join(folder, name), beside)
    return FirmwareImage(os.path.join(folder, name))


def _in(name: str, root: str) -> FirmwareImage | None:
    for code, fresh in _PLACES[name]:
        paths = [os.path.join(root, path) if path else "" for path in (code, fresh)]
        if all(os.path.isfile(path) for path in paths if path):
            return FirmwareImage(*paths)
    return None


def _from_package(name: str, progress: Say) -> FirmwareImage:
    """The Debian packages have the names that are ours."""
    try:
        found = _in(name, packages.fetched(name, progress))
    except CannotRun as error:
        raise CannotRun(
            f"no {name} firmware on this machine, and {error.message}",
            hint=f"install the package {name}{' (edk2-ovmf elsewhere)' if name == 'ovmf' else ''}",
        ) from error
    if found is None:
        raise CannotRun(f"the package {name} has no firmware where it used to be", hint="give the path of an image")
    return found


def fresh_copy(template: str, path: str) -> None:
    """Make `path` with the variables of a new machine. CannotRun where it cannot be written."""
    import shutil

    try:
        with open(template, "rb") as source, open(path, "xb") as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise CannotRun(f"cannot make {path}: {error.strerror}") from error
