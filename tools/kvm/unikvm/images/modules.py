# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel modules a guest needs, in the order in which they load: from .modinfo, without depmod.

depmod is not run for a package that is only unpacked, so the index is made here, from the modules that are asked for
and what they name, and kept in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from unikvm.errors import CannotRun
from unikvm.images import cache

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def resolve(modules: str, release: str, names: Sequence[str]) -> list[str]:
    """Paths of the modules `names` and of all that they need, each after what it needs.

    `modules` is lib/modules/RELEASE or a build tree. What is built into the kernel is left out. CannotRun when a module
    is missing, or when two need each other.
    """
    if not modules:
        raise CannotRun(f"no modules are known for the kernel {release}", hint="give its package, or its build tree")
    note = cache.entry("modules", cache.digest(release, cache.identity(modules), *names))
    if os.path.exists(note):
        with open(note, encoding="utf-8") as file:
            paths = file.read().splitlines()
        if all(map(os.path.exists, paths)):
            return paths
    paths = _Resolver(modules, release).resolve(names)
    cache.write(note, [f"{path}\n".encode() for path in paths])
    return paths


def decompressed(path: str) -> bytes:
    """A module's ELF, whatever its file is compressed with."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(data)
    if path.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    if path.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise CannotRun(f"{path} is compressed with zstd", hint="pip install zstandard") from None
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def canonical(name: str) -> str:
    """`-` and `_` are the same in module names."""
    return name.replace("-", "_")


class _Resolver:
    def __init__(self, modules: str, release: str) -> None:
        self._release = release
        self._files = _module_files(modules)
        self._builtin = _builtin(modules)
        self._order: list[str] = []
        self._under_way: list[str] = []

    def resolve(self, names: Sequence[str]) -> list[str]:
        for name in names:
            self._add(canonical(name), wanted_by="")
        return self._order

    def _add(self, name: str, wanted_by: str) -> None:
        path = self._files.get(name)
        if path in self._order or name in self._builtin:
            return
        if path is None:
            for_whom = f", which {wanted_by} needs," if wanted_by else ""
            raise CannotRun(f"the kernel {self._release} has no module {name}{for_whom} and not built in either")
        if name in self._under_way:
            raise CannotRun(f"modules of {self._release} need each other: {' -> '.join([*self._under_way, name])}")
        self._under_way.append(name)
        needs, softly = _needs(path)
        for need in softly:
            if need in self._files:
                self._add(need, wanted_by=name)
        for need in needs:
            self._add(need, wanted_by=name)
        self._under_way.pop()
        self._order.append(path)


def _module_files(modules: str) -> dict[str, str]:
    """Every module's file by its canonical name."""
    files = {}
    for folder, _, names in os.walk(modules):
        for name in names:
            if name.endswith(SUFFIXES):
                files[canonical(name[: name.index(".ko")])] = os.path.join(folder, name)
    return files


def _builtin(modules: str) -> set[str]:
    path = os.path.join(modules, "modules.builtin")
    if not os.path.exists(path):
        return set()
    with open(path, encoding="utf-8") as file:
        return {canonical(os.path.basename(line.strip()).removesuffix(".ko")) for line in file}


def _needs(path: str) -> tuple[list[str], list[str]]:
    """What a module needs (`depends`), and what should be loaded before it (`softdep … pre:`)."""
    import io

    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(decompressed(path))).get_section_by_name(".modinfo")
    except (ELFError, EOFError, OSError) as error:
        raise CannotRun(f"{path} is not a sound module: {error}") from error
    needs: list[str] = []
    softly: list[str] = []
    for entry in (section.data() if section else b"").split(b"\0"):
        key, _, value = entry.decode("utf-8", "replace").partition("=")
        if key == "depends":
            needs += [canonical(name) for name in value.split(",") if name]
        elif key == "softdep" and "pre:" in value:
            words = value.partition("pre:")[2].partition("post:")[0].split()
            softly += [canonical(word) for word in words if ":" not in word]
    return needs, softly
