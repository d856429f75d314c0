# SPDX-License-Identifier: GPL-2.0-only
"""Finds kernels: a path, a .deb, a Linux build tree, or a Debian package; with their modules and headers."""

from __future__ import annotations

import os
from struct import error as StructError
from struct import unpack_from

from unikvm.errors import CannotRun
from unikvm.images import cache, packages
from unikvm.images.packages import IMAGE
from unikvm.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.images.cache import Say

DEFAULT = "linux-image-cloud-amd64"
BANNER = b"Linux version "
BZIMAGE = "arch/x86/boot/bzImage"

# The setup header of a bzImage (Linux: Documentation/arch/x86/boot.rst)
SETUP_SECTS_AT = 0x1F1
HEADER_MAGIC_AT = 0x202
HEADER_MAGIC = b"HdrS"
VERSION_AT = 0x206
KERNEL_VERSION_AT = 0x20E
XLOADFLAGS_AT = 0x236
PAYLOAD_AT = 0x248  # payload_offset and payload_length
PROTOCOL_NEEDED = 0x20C  # with xloadflags: Linux 3.8
XLF_KERNEL_64 = 1 << 0
HEADER_END = 0x268
EM_X86_64 = 62
# A release is a directory's name too, and an image is not to choose which.
RELEASE_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+~-")


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
        return _from_deb(spec, progress) if spec.endswith(".deb") else _from_image(os.path.abspath(spec), progress)
    if not spec or "/" in spec or spec.endswith((".deb", "bzImage", "vmlinux")):
        raise CannotRun(f"no such kernel: {spec or '(an empty name)'}")
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


def _of_machine() -> Kernel | None:
    """The kernel that this machine runs, or the newest in /boot."""
    release = os.uname().release
    images = [f"/boot/vmlinuz-{release}", f"/lib/modules/{release}/vmlinuz"]  # the second: Fedora, Arch
    if os.path.isdir("/boot"):
        names = [name for name in os.listdir("/boot") if name.startswith("vmlinuz-")]
        images += [f"/boot/{name}" for name in sorted(names, key=by_version, reverse=True)]
    return next((_from_image(image) for image in images if os.access(image, os.R_OK)), None)


def _from_package(name: str, progress: Say) -> Kernel:
    if not name.startswith("linux-"):
        name = IMAGE + name
    version, flavour = parts_of(name.removeprefix(IMAGE))
    if version.count(".") >= 2:
        return _unpacked(packages.fetched(name, progress))
    # A meta package: linux-image-cloud-amd64, linux-image-6.12-cloud-amd64
    try:
        return _unpacked(packages.fetched(packages.meant_by(name, progress), progress))
    except CannotRun as error:
        kernel = _newest_cached(version, flavour)
        if kernel is None:
            raise
        progress(f"{error.message}: going on with {kernel.release} from the cache")
        return kernel


def _newest_cached(version: str = "", flavour: str = "") -> Kernel | None:
    """The newest kernel among the packages in the cache; of one flavour, and of one series of versions, if given."""
    folder = cache.entry("packages")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    releases = [name.removeprefix(IMAGE) for name in names if name.startswith(IMAGE)]
    if version:
        releases = [release for release in releases if release.startswith(f"{version}.")]
    if flavour:
        releases = [release for release in releases if parts_of(release)[1] == flavour]
    return _unpacked(os.path.join(folder, IMAGE + max(releases, key=by_version))) if releases else None


def parts_of(release: str) -> tuple[str, str]:
    """Version and flavour of a release: 6.1.0-56, cloud-amd64."""
    words = release.split("-")
    count = next((at for at, word in enumerate(words) if not word[:1].isdigit()), len(words))
    return "-".join(words[:count]), "-".join(words[count:])


def by_version(name: str) -> list[int]:
    """A key to sort releases by: their numbers."""
    return [int(word) for word in "".join(c if c in "0123456789" else " " for c in name).split()]


def _unpacked(folder: str) -> Kernel:
    """The kernel of an unpacked linux-image package."""
    boot = os.path.join(folder, "boot")
    images = [name for name in os.listdir(boot) if name.startswith("vmlinuz-")] if os.path.isdir(boot) else []
    if not images:
        raise CannotRun(f"{os.path.basename(folder)} has no kernel in it")
    return _from_image(os.path.join(boot, images[0]))


def _from_deb(path: str, progress: Say) -> Kernel:
    """A package's file. It is unpacked once, and again when it has changed."""
    name = os.path.basename(path)
    folder = cache.entry("debs", f"{name}-{cache.digest(cache.identity(path))}")
    if not os.path.isdir(folder):
        with cache.locked(f"unpacking {name}", progress):
            if not os.path.isdir(folder):
                with cache.making(folder) as work:
                    packages.unpack(path, work)
                    if not os.path.isdir(os.path.join(work, "boot")):
                        raise CannotRun(f"{path} has no kernel in it")
    return _unpacked(folder)


def _from_tree(folder: str) -> Kernel:
    """A Linux build tree; its modules are where they were built."""
    images = [os.path.join(folder, name) for name in (BZIMAGE, "vmlinux")]
    images = [image for image in images if os.path.isfile(image)]
    if not images:
        raise CannotRun(
            f"{folder} is not a Linux build tree with a kernel in it", hint="`make bzImage` there builds one"
        )
    image = max(images, key=os.path.getmtime)  # after `make vmlinux` the bzImage there is an older kernel's
    return Kernel(image, release_of(image), _modules_of_tree(folder))


def _modules_of_tree(folder: str) -> str:
    return folder if os.path.exists(os.path.join(folder, "modules.order")) else ""


def _from_image(image: str, progress: Say = quiet) -> Kernel:
    release = release_of(image)
    root = os.path.dirname(os.path.dirname(image))
    # Debian's packages have /usr/lib since 13.
    for place in (f"{root}/lib/modules", f"{root}/usr/lib/modules", "/lib/modules"):
        if os.path.isdir(os.path.join(place, release)):
            return Kernel(image, release, os.path.join(place, release))
    where = os.path.realpath(image)  # arch/x86_64/boot/bzImage is a link
    for name in (BZIMAGE, "vmlinux"):
        if where.endswith(f"/{name}") and (modules := _modules_of_tree(where.removesuffix(f"/{name}"))):
            return Kernel(image, release, modules)
    progress(f"no modules of {release} are known: there is only what is built into it")
    return Kernel(image, release)


def release_of(image: str) -> str:
    """What `uname -r` says in it. CannotRun when the file is no x86-64 Linux kernel, or not all of one."""
    try:
        with open(image, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER_END)
            if head[:4] == b"\x7fELF":
                version = _elf_release(image, file.fileno(), size)
            else:
                file.seek(_version_place(image, head, size))
                version = file.read(128).split(b"\0")[0].split(b" ")[0].decode("latin-1")
    except OSError as error:
        raise CannotRun(f"cannot read {image}: {error.strerror}") from error
    if not version or version.startswith(".") or not RELEASE_LETTERS.issuperset(version):
        raise CannotRun(f"{image} is damaged: it does not name its release")
    return version


def _version_place(image: str, head: bytes, size: int) -> int:
    """Where a bzImage names its release."""
    if head[HEADER_MAGIC_AT : HEADER_MAGIC_AT + 4] != HEADER_MAGIC or len(head) < HEADER_END:
        raise CannotRun(f"{image} is not a kernel: neither a bzImage nor an ELF")
    protocol = unpack_from("<H", head, VERSION_AT)[0]
    if protocol < PROTOCOL_NEEDED:
        raise CannotRun(f"{image} is too old: boot protocol {protocol >> 8}.{protocol & 0xFF:02}, 2.12 is needed")
    if not unpack_from("<H", head, XLOADFLAGS_AT)[0] & XLF_KERNEL_64:
        raise CannotRun(
            f"{image} is a 32-bit kernel, and our init is for x86-64",
            hint="give an initramfs of its own with --initrd, and no command",
        )
    payload_extent(image, head, size)
    return int(unpack_from("<H", head, KERNEL_VERSION_AT)[0]) + 0x200


def payload_extent(image: str, head: bytes, size: int) -> tuple[int, int]:
    """Start and end of the compressed kernel in a bzImage of `size` bytes, from its first HEADER_END bytes."""
    offset, length = unpack_from("<II", head, PAYLOAD_AT)
    start = ((head[SETUP_SECTS_AT] or 4) + 1) * 512 + offset
    if not length or start + length > size:
        raise CannotRun(f"{image} is truncated: {start + length - size} bytes of the kernel are missing")
    return start, start + length


def _elf_release(image: str, fd: int, size: int) -> str:
    import mmap

    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        try:
            if content[4] != 2 or unpack_from("<H", content, 18)[0] != EM_X86_64:
                raise CannotRun(f"{image} is not an ELF for x86-64")
            table, entry_size, count = unpack_from("<Q", content, 32)[0], *unpack_from("<HH", content, 54)
            ends = [sum(unpack_from("<Q16xQ", content, table + at * entry_size + 8)[:2]) for at in range(count)]
        except (IndexError, StructError, OverflowError):
            raise CannotRun(f"{image} is a damaged ELF: its headers end early") from None
        if max(ends, default=0) > size:
            raise CannotRun(f"{image} is truncated: {max(ends) - size} bytes of the kernel are missing")
        at = content.find(BANNER)
        while at >= 0:
            word = content[at + len(BANNER) : at + len(BANNER) + 128].split(b" ")[0].split(b"\0")[0]
            if word[:1].isdigit():
                return word.decode("latin-1")
            at = content.find(BANNER, at + 1)
    raise CannotRun(f"{image} is an ELF, but not a Linux kernel")


def kernel_headers(kernel: Kernel, *, progress: Say = quiet) -> str:
    """The directory to build modules for `kernel` against: installed, its build tree, or packages from the cache."""
    release = kernel.release
    for folder in (f"/lib/modules/{release}/build", f"/usr/src/linux-headers-{release}", kernel.modules):
        if folder and os.path.exists(os.path.join(folder, "Module.symvers")):
            return os.path.realpath(folder)
    from unikvm.images import headers

    return headers.fetched(release, progress)
