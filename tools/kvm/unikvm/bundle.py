# SPDX-License-Identifier: GPL-2.0-only
"""The bytecode of all modules in one file, which `make build` writes.

Python looks for a module in its folder, then at its source, then for its bytecode, each time by code in Python: for the
sixty modules of a payload's run that is an eighth of its time. With this file there is one look at the source: where
its time or size is another one than when the file was written, the module is imported as ever.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    # Of a module: where its bytecode is and how long, and its source's path, time (ns) and size.
    Entry = tuple[int, int, str, int, int]

NAME = f"modules.{sys.implementation.cache_tag}"
_HEAD = len(MAGIC_NUMBER) + 4  # and the size of the index
_INIT = "/__init__.py"


class Bundle:
    """A finder of modules and their loader (importlib.abc)."""

    def __init__(self, fd: int, start: int, index: dict[str, Entry]) -> None:
        """`start`: where in the file the first bytecode is; offsets count from there."""
        self._fd = fd
        self._start = start
        self._index = index

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where the module is; None where it is not in here, or has changed."""
        entry = self._index.get(name)
        if entry is None:
            return None
        source = entry[2]
        try:
            status = os.stat(source)
        except OSError:
            return None
        if (status.st_mtime_ns, status.st_size) != entry[3:]:
            return None
        spec = ModuleSpec(name, self, origin=source, loader_state=entry)  # type: ignore[arg-type] # it has what is needed
        if source.endswith(_INIT):
            spec.submodule_search_locations = [source.removesuffix(_INIT)]
        return spec

    def create_module(self, _spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        offset, size, source, _, _ = spec.loader_state
        module.__file__ = source
        exec(loads(os.pread(self._fd, size, self._start + offset)), module.__dict__)


def use(path: str, package: str) -> None:
    """Import the modules of the folder `package` from the file at `path`, where that is of this folder and Python."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        head = os.pread(fd, _HEAD, 0)
        if fd > 2 and head[:-4] == MAGIC_NUMBER:  # a standard descriptor that was closed is not ours
            size = int.from_bytes(head[-4:], "little")
            folder, index = loads(os.pread(fd, size, _HEAD))
            if folder == package:
                sys.meta_path.insert(0, Bundle(fd, _HEAD + size, index))
                return
    except (ValueError, TypeError, EOFError):
        pass  # somebody else wrote it
    os.close(fd)


def write(path: str, package: str) -> None:
    """Write the file for the modules in the folder `package`; not where it would be the same."""
    base = os.path.dirname(package)
    found: dict[str, Entry] = {}
    codes: list[bytes] = []
    offset = 0
    for folder, folders, files in os.walk(package):
        folders.sort()
        for file in sorted(files):
            source = os.path.join(folder, file)
            if file.endswith(".py"):
                name = os.path.relpath(source, base).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                status = os.stat(source)
                code = dumps(_code(name, source))
                found[name] = (offset, len(code), source, status.st_mtime_ns, status.st_size)
                codes.append(code)
                offset += len(code)
    index = dumps((package, found))
    content = b"".join((MAGIC_NUMBER, len(index).to_bytes(4, "little"), index, *codes))
    if os.path.exists(path):
        with open(path, "rb") as old:
            if old.read() == content:
                return
    with open(f"{path}.{os.getpid()}", "wb") as file_of:
        file_of.write(content)
    os.replace(file_of.name, path)


def _code(name: str, source: str) -> CodeType:
    """As Python would have it: from the module's own file of bytecode, where that is as new."""
    code: CodeType | None = SourceFileLoader(name, source).get_code(name)
    assert code is not None, "there is a source"
    return code
