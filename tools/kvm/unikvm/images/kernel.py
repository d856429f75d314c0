# SPDX-License-Identifier: GPL-2.0-only
"""Finds kernels: a path, a .deb, a Linux build tree, or a Debian package; with their modules and headers."""

from __future__ import annotations

import os
from struct import unpack_from

from unikvm.errors import CannotRun
from unikvm.images import cache, packages
from unikvm.images.cache import Say
from unikvm.record import Record

DEFAULT = "linux-image-cloud-amd64"
IMAGE = "linux-image-"
BANNER = b"Linux version "

# The setup header of a bzImage (Linux: Documentation/arch/x86/boot.rst)
HEADER_MAGIC_AT = 0x202
HEADER_MAGIC = b"HdrS"
VERSION_AT = 0x206
KERNEL_VERSION_AT = 0x20E
XLOADFLAGS_AT = 0x236
XLF_KERNEL_64 = 1 << 0
HEADER_END = 0x268
EM_X86_64 = 62


class Kernel(Record):
    """A kernel: its `image` (bzImage or vmlinux), its `release`, and lib/modules/RELEASE or the like ("": none)."""

    image: str
    release: str
    modules: str = ""


def quiet(_text: str) -> None:
    """For callers that show no progress."""


def find_kernel(spec: str | None = None, *, progress: Say = quiet) -> Kernel:
    """The kernel that `spec` names; None: Debian's newest cloud kernel, or what is there in its place.

    `spec` is the path of a bzImage, a vmlinux, a .deb or a Linux build tree; or a Debian package, its release alone, or
    a meta package. Packages are fetched into the cache without root. Raises CannotRun.
    """
    if spec is None:
        return _default(progress)
    if os.path.isdir(spec):
        return _from_tree(os.path.abspath(spec))
    if os.path.isfile(spec):
        return _from_deb(spec) if spec.endswith(".deb") else _from_image(os.path.abspath(spec))
    if "/" in spec or spec.endswith((".deb", "bzImage", "vmlinux")):
        raise CannotRun(f"no such kernel: {spec}")
    return _from_package(spec, progress)


def _default(progress: Say) -> Kernel:
    try:
        return _from_package(DEFAULT, progress)
    except CannotRun as error:
        kernel = _newest_cached() or _of_machine()
        if kernel is None:
            raise
        progress(f"{error.message}: going on with {kernel.release}")
        return kernel


def _newest_cached() -> Kernel | None:
    folder = cache.entry("packages")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    images = [os.path.join(folder, name) for name in names if name.startswith(IMAGE)]
    return _unpacked(max(images, key=os.path.getmtime)) if images else None


def _of_machine() -> Kernel | None:
    """The kernel that this machine runs, or the newest in /boot."""
    images = [f"/boot/vmlinuz-{os.uname().release}"]
    if os.path.isdir("/boot"):
        images += sorted((f"/boot/{name}" for name in os.listdir("/boot") if name.startswith("vmlinuz-")), reverse=True)
    return next((_from_image(image) for image in images if os.access(image, os.R_OK)), None)


def _from_package(name: str, progress: Say) -> Kernel:
    if not name.startswith("linux-"):
        name = IMAGE + name
    release = name.removeprefix(IMAGE)
    if not release[:1].isdigit() or release.count(".") < 2:  # linux-image-cloud-amd64, linux-image-6.12-cloud-amd64
        name = packages.meant_by(name, progress)
    return _unpacked(packages.fetched(name, progress))


def _unpacked(folder: str) -> Kernel:
    """The kernel of an unpacked linux-image package."""
    boot = os.path.join(folder, "boot")
    images = [name for name in os.listdir(boot) if name.startswith("vmlinuz-")] if os.path.isdir(boot) else []
    if not images:
        raise CannotRun(f"{os.path.basename(folder)} has no kernel in it")
    return _from_image(os.path.join(boot, images[0]))


def _from_deb(path: str) -> Kernel:
    folder = cache.entry("debs", f"{os.path.basename(path)}-{cache.digest(cache.identity(path))}")
    if not os.path.isdir(folder):
        with cache.making(folder) as work:
            packages.unpack(path, work)
    return _unpacked(folder)


def _from_tree(folder: str) -> Kernel:
    """A Linux build tree; its modules are where they were built."""
    for name in ("arch/x86/boot/bzImage", "vmlinux"):
        image = os.path.join(folder, name)
        if os.path.isfile(image):
            modules = folder if os.path.exists(os.path.join(folder, "modules.order")) else ""
            return Kernel(image, release_of(image), modules)
    raise CannotRun(f"{folder} is not a Linux build tree with a kernel in it", hint="`make bzImage` there builds one")


def _from_image(image: str) -> Kernel:
    release = release_of(image)
    beside = os.path.join(os.path.dirname(os.path.dirname(image)), "lib/modules", release)
    for modules in (beside, f"/lib/modules/{release}"):
        if os.path.isdir(modules):
            return Kernel(image, release, modules)
    return Kernel(image, release)


def release_of(image: str) -> str:
    """What `uname -r` says in it. CannotRun when the file is no x86-64 Linux kernel."""
    try:
        with open(image, "rb") as file:
            head = file.read(HEADER_END)
            if head[:4] == b"\x7fELF":
                return _elf_release(image, file.fileno(), head)
            if head[HEADER_MAGIC_AT : HEADER_MAGIC_AT + 4] != HEADER_MAGIC or len(head) < HEADER_END:
                raise CannotRun(f"{image} is not a kernel: neither a bzImage nor an ELF")
            if not unpack_from("<H", head, XLOADFLAGS_AT)[0] & XLF_KERNEL_64:
                raise CannotRun(f"{image} is a 32-bit kernel", hint="unikvm runs Linux for x86-64")
            at = unpack_from("<H", head, KERNEL_VERSION_AT)[0] + 0x200
            file.seek(at)
            version = file.read(128).split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
    except OSError as error:
        raise CannotRun(f"cannot read {image}: {error.strerror}") from error
    if not version:
        raise CannotRun(f"{image} is truncated: it does not name its release")
    return version


def _elf_release(image: str, fd: int, head: bytes) -> str:
    import mmap

    if head[4:5] != b"\x02" or unpack_from("<H", head, 18)[0] != EM_X86_64:
        raise CannotRun(f"{image} is not an ELF for x86-64")
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        at = content.find(BANNER)
        while at >= 0:
            word = content[at + len(BANNER) : at + len(BANNER) + 128].split(b" ")[0].split(b"\0")[0]
            if word[:1].isdigit():
                return word.decode("ascii", "replace")
            at = content.find(BANNER, at + 1)
    raise CannotRun(f"{image} is an ELF, but not a Linux kernel")


def kernel_headers(kernel: Kernel, *, progress: Say = quiet) -> str:
    """The directory to build modules for `kernel` against: installed, its build tree, or packages from the cache."""
    release = kernel.release
    for folder in (f"/lib/modules/{release}/build", f"/usr/src/linux-headers-{release}", kernel.modules):
        if folder and os.path.exists(os.path.join(folder, "Module.symvers")):
            return os.path.realpath(folder)
    path = cache.entry("headers", release)
    inside = os.path.join(path, "usr/src", f"linux-headers-{release}")
    if not os.path.isdir(inside):
        with cache.locked(f"headers of {release}", progress):
            if not os.path.isdir(inside):
                _make_headers(release, path, progress)
    return inside


def _make_headers(release: str, path: str, progress: Say) -> None:
    """Unpack the three packages that Debian splits headers into, over each other."""
    name = f"linux-headers-{release}"
    parts = [part for part in packages.dependencies(name) if part.startswith(("linux-headers-", "linux-kbuild-"))]
    with cache.making(path) as work:
        packages.fetch_into(work, [name, *parts], progress)
        # It includes the common Makefile by the path at which dpkg would install it.
        makefile = os.path.join(work, "usr/src", name, "Makefile")
        with open(makefile, encoding="utf-8") as file:
            text = file.read()
        with open(makefile, "w", encoding="utf-8") as file:
            file.write(text.replace("/usr/src/", f"{path}/usr/src/"))
