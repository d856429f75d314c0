# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel modules a guest needs, in the order in which they load: from .modinfo, without depmod.

depmod is not run for a package that is only unpacked, so what it would have written is read here from the modules
that are asked for and those that they name; the answers are kept in the cache.
"""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import quiet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unikvm.images.cache import Say

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def resolve(
    modules: str, release: str, names: Sequence[str], *, optional: Sequence[str] = (), say: Say = quiet
) -> list[str]:
    """Paths of the modules `names` and of all that they need, each after what it needs.

    `modules` is lib/modules/RELEASE or a build tree. What is built into the kernel is left out. CannotRun when a module
    is missing, or when two need each other; those of `optional` may be, which `say` is told when it is found out.
    """
    if not modules:
        raise CannotRun(f"no modules are known for the kernel {release}", hint="give its package, or its build tree")
    made = [cache.identity(path) for path in _made_with(modules)]
    note = cache.entry("modules", cache.digest(release, *made, *names, "optional", *optional))
    known = _known(note)
    if known is not None:
        return known
    resolver = _Resolver(modules, release)
    for name in names:
        resolver.add(name)
    for name in optional:
        resolver.try_to_add(name, say)
    cache.write(note, [f"{line}\n".encode() for line in (_stamp(resolver.order), *resolver.order)])
    return resolver.order


def _made_with(modules: str) -> list[str]:
    """What changes when modules come or go: the directory, and what the kernel's build leaves in it."""
    paths = [modules, *(os.path.join(modules, name) for name in ("modules.order", "modules.builtin"))]
    return [path for path in paths if os.path.exists(path)]


def _stamp(paths: Sequence[str]) -> str:
    """Changes when one of the modules is built again: it may need others then."""
    return cache.digest(*map(cache.identity, paths))


def _known(note: str) -> list[str] | None:
    """The last answer, if its modules are as they were."""
    try:
        with open(note, encoding="utf-8") as file:
            stamp, *paths = file.read().splitlines()
        return paths if stamp == _stamp(paths) else None
    except (OSError, ValueError):
        return None


def decompressed(path: str) -> bytes:
    """A module's ELF, whatever its file is compressed with. CannotRun when it is damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from error
    if path.endswith(".ko"):
        return data
    from unikvm.images.compression import decompress

    return decompress(path, data)


def canonical(name: str) -> str:
    """`-` and `_` are the same in module names."""
    return name.replace("-", "_")


class _Resolver:
    """Puts modules in order. `order`: the paths found so far, each after what it needs."""

    def __init__(self, modules: str, release: str) -> None:
        self.order: list[str] = []
        self._modules = modules
        self._release = release
        self._files = _module_files(modules)
        self._builtin = _builtin(modules)
        self._under_way: list[str] = []

    def add(self, name: str, wanted_by: str = "") -> None:
        name = canonical(name)
        path = self._files.get(name)
        if path in self.order or name in self._builtin:
            return
        if path is None:
            for_whom = f", which {wanted_by} needs," if wanted_by else ""
            raise CannotRun(f"the kernel {self._release} has no module {name}{for_whom} and not built in either")
        if name in self._under_way:
            raise CannotRun(f"modules of {self._release} need each other: {' -> '.join([*self._under_way, name])}")
        self._under_way.append(name)
        info = _modinfo(path)
        for need in _softly(info):
            # A hint of the module's author, which the kernel may not fulfil, nor in the order that he wanted.
            if (real := self._real(need)) in self._files and real not in self._under_way:
                self.add(real, wanted_by=name)
        for need in _values(info, "depends"):
            for one in filter(None, need.split(",")):
                self.add(one, wanted_by=name)
        self._under_way.pop()
        self.order.append(path)

    def try_to_add(self, name: str, say: Say) -> None:
        """The same for a module that may be missing."""
        before = len(self.order)
        try:
            self.add(name)
        except CannotRun as error:
            say(f"{error.message}: going on without")
            del self.order[before:]
            self._under_way.clear()

    def _real(self, name: str) -> str:
        """A module's name, where an alias of it may be given: `crypto-crc32c`."""
        name = canonical(name)
        if name in self._files or name in self._builtin:
            return name
        return _aliases(self._modules, self._release, self._files).get(name, name)


def _module_files(modules: str) -> dict[str, str]:
    """Every module's file by its canonical name. As with depmod, those in updates/ come before the kernel's own."""
    files: dict[str, str] = {}
    for path in _files_of(modules):
        name = canonical(os.path.basename(path).partition(".ko")[0])
        if name not in files or path.startswith(os.path.join(modules, "updates/")):
            files[name] = path
    return files


def _files_of(modules: str) -> Iterator[str]:
    order = os.path.join(modules, "modules.order")
    if os.path.exists(os.path.join(modules, "Makefile")) and os.path.exists(order):
        # A build tree: what `make` listed, not a walk through all objects. Old kernels' lines begin with kernel/,
        # which is a directory too; new kernels' lines name the .o.
        with open(order, encoding="utf-8") as file:
            for line in file:
                path = os.path.splitext(line.strip().removeprefix("kernel/"))[0] + ".ko"
                places = [os.path.join(modules, place) for place in (path, f"kernel/{path}")]
                yield from filter(os.path.exists, places)
        return
    for folder, _, names in os.walk(modules):
        yield from (os.path.join(folder, name) for name in names if name.endswith(SUFFIXES))


def _builtin(modules: str) -> set[str]:
    """What is in the kernel itself, by names and aliases."""
    names = set()
    path = os.path.join(modules, "modules.builtin")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            names = {canonical(os.path.basename(line.strip()).removesuffix(".ko")) for line in file}
    if os.path.exists(f"{path}.modinfo"):
        with open(f"{path}.modinfo", "rb") as binary:
            info = binary.read().decode("utf-8", "replace").split("\0")
        words = (entry.partition(".")[2].partition("=") for entry in info)
        names |= {canonical(value) for key, _, value in words if key == "alias" and "*" not in value}
    return names


def _aliases(modules: str, release: str, files: dict[str, str]) -> dict[str, str]:
    """Modules by their aliases, for all modules: seconds of work, done once a kernel, when an alias is asked for."""
    import json

    made = [cache.identity(path) for path in _made_with(modules)]
    note = cache.entry("modules", f"aliases-{cache.digest(release, *made)}.json")
    try:
        with open(note, encoding="utf-8") as file:
            known: dict[str, str] = json.load(file)
            return known
    except (OSError, ValueError):
        pass
    found: dict[str, str] = {}
    for name, path in files.items():
        try:
            for alias in _values(_modinfo(path), "alias"):
                if "*" not in alias:
                    found.setdefault(canonical(alias), name)
        except CannotRun:
            continue  # it is not the one that was asked for, or that is said when it is
    cache.write(note, [json.dumps(found).encode()])
    return found


def _modinfo(path: str) -> list[tuple[str, str]]:
    """The entries of a module's .modinfo section."""
    import io

    from elftools.elf.elffile import ELFFile

    data = decompressed(path)
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
        text = section.data().decode("utf-8", "replace") if section else ""
    except Exception as error:  # pyelftools meets damage with many kinds
        raise CannotRun(f"{path} is not a sound module: {error or type(error).__name__}") from error
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return [(key, value) for key, _, value in pairs]


def _values(info: list[tuple[str, str]], wanted: str) -> list[str]:
    return [value for key, value in info if key == wanted]


def _softly(info: list[tuple[str, str]]) -> list[str]:
    """What should be loaded before a module (`softdep=pre: a b post: c`)."""
    found = []
    for value in _values(info, "softdep"):
        words = value.replace("pre:", " pre: ").replace("post:", " post: ").split()
        before = False
        for word in words:
            if word in ("pre:", "post:"):
                before = word == "pre:"
            elif before:
                found.append(word)
    return found
