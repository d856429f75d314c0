# SPDX-License-Identifier: GPL-2.0-only
"""Imports point down: cli → {bisect, check} → campaign → {hostvm, observe, …} → machine → … → sys → uapi → pure.

Imports inside functions count, and so do those for type checking alone: whoever names a type depends on it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from style.tree import PACKAGE

LAYERS = (
    ("errors", "units", "regs", "wire", "record", "cstruct", "lean", "bundle", "release"),  # pure; `release` asks git
    ("uapi",),
    ("sys",),
    ("memory", "bus", "routing", "irq", "pci", "msix", "vhost", "p9"),
    ("arch", "devices", "virtio", "display", "images", "boot"),
    ("machine",),
    ("hostvm", "observe", "control", "remote"),
    ("campaign",),
    ("bisect", "check"),
    ("cli",),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
# Within a layer nobody knows of his neighbours, but for these.
NEIGHBOURS = {
    ("units", "errors"),
    ("pci", "bus"),
    ("msix", "pci"),
    ("irq", "routing"),
    ("vhost", "memory"),
    ("boot", "arch"),
}
FACADES = {"__init__", "__main__"}  # the library's face and the program's: they name what is below them all

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms of this package that a module imports from, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            names = [node.module or ""]
            if node.module == "unikvm":
                names = [f"unikvm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("unikvm."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room in FACADES:
        return
    assert room in RANK, f"{room} has no place in the layers (tests/style/test_imports.py)"
    for target, line in imported_rooms(path):
        if target == room:
            continue
        down = target in RANK and RANK[target] < RANK[room]
        assert down or (room, target) in NEIGHBOURS, (
            f"{path.relative_to(PACKAGE)}:{line}: {room} must not import {target}"
        )


def test_library_face_is_lazy() -> None:
    """`import unikvm` loads neither the VMM nor `typing`: every start pays for it."""
    import subprocess
    import sys

    code = "import sys, unikvm; print(sorted(m for m in sys.modules if m.startswith('unikvm.') or m == 'typing'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
