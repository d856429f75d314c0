# SPDX-License-Identifier: GPL-2.0-only
"""The default guest: init, the modules of virtio, and busybox, in one uncompressed archive, made once."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import cache, packages
from unikvm.images.kernel import Kernel, quiet
from unikvm.images.modules import decompressed, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unikvm.images.cache import Say
    from unikvm.images.initramfs import Initramfs

LAYOUT = "1"  # changes when the same parts would make another archive
KEPT = 16  # archives in the cache, 4 MB each
# Without these two there is no way into the guest; a kernel developer's configuration may lack the rest.
MODULES = ("virtio_pci", "virtio_console")
OPTIONAL_MODULES = ("virtio_mmio", "virtio_blk", "virtio_rng")
MODULES_LIST = "/unikvm/modules.list"
BUSYBOX = "/bin/busybox"
BUSYBOX_PLACES = ("bin/busybox", "usr/bin/busybox", "sbin/busybox")  # the second since Debian 13


def guest_initramfs(
    kernel: Kernel,
    *,
    init: str,
    modules: Sequence[str] = MODULES,
    optional: Sequence[str] = OPTIONAL_MODULES,
    base: str | None = None,
    progress: Say = quiet,
) -> str:
    """The path of an initramfs for `kernel`, in the cache; its content decides its name, so it is made once.

    `init` is the built tools/kvm/guest binary. `base` is an initramfs of the user's own, which ours comes on top of:
    /init is then ours, everything else the user's. For a kernel of which no modules are known (find_kernel says so)
    there are none in it.
    """
    busybox = busybox_binary(progress)
    paths = []
    if kernel.modules:
        paths = resolve(kernel.modules, kernel.release, modules, optional=optional, say=progress)
    parts = [LAYOUT, kernel.release, *map(cache.identity, (init, *paths))]
    parts += [cache.identity(busybox)] if busybox else []
    parts += [cache.identity(base)] if base else []
    path = cache.entry("initramfs", cache.digest(*parts))
    if os.path.exists(path):
        cache.used(path)
        return path
    start = _read(base) if base else b""
    cache.write(path, [start, bytes(-len(start) % 4), _bytes(_archive(kernel, init, paths, busybox))])
    cache.keep_newest(os.path.dirname(path), KEPT)
    return path


def _archive(kernel: Kernel, init: str, paths: Sequence[str], busybox: str) -> Initramfs:
    import stat

    from unikvm.images.initramfs import Initramfs

    archive = Initramfs()
    archive.add_file("/init", _read(init))
    archive.add_dir("/dev")
    archive.add_node("/dev/console", stat.S_IFCHR | 0o600, 5, 1)
    inside = [f"/lib/modules/{kernel.release}/{os.path.basename(path).partition('.ko')[0]}.ko" for path in paths]
    for name, path in zip(inside, paths, strict=True):
        archive.add_file(name, decompressed(path), 0o644)
    archive.add_file(MODULES_LIST, "".join(f"{name}\n" for name in inside).encode(), 0o644)
    if busybox:
        archive.add_file(BUSYBOX, _read(busybox))
    return archive


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from error


def _bytes(archive: Initramfs) -> bytes:
    import io

    buffer = io.BytesIO()
    archive.write(buffer)
    return buffer.getvalue()


def _busyboxes(root: str) -> list[str]:
    return [path for place in BUSYBOX_PLACES if os.path.exists(path := os.path.join(root, place))]


def busybox_binary(progress: Say = quiet) -> str:
    """A static busybox: Debian's busybox-static, or this machine's; empty (and said) where there is none."""
    try:
        return _busyboxes(packages.fetched("busybox-static", progress))[0]
    except CannotRun as error:
        for path in filter(is_static, _busyboxes("/")):
            return path
        progress(f"no busybox for the guest: {error}")
        return ""


def is_static(path: str) -> bool:
    """Whether an executable needs no loader."""
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:
        return all(segment["p_type"] != "PT_INTERP" for segment in ELFFile(file).iter_segments())
