# SPDX-License-Identifier: GPL-2.0-only
"""The generated bindings against the compiler's own word: sizes, places and values, without DWARF."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from style.tree import GENERATED, TREE, files, text

NAMES = sorted(Path(name).stem for name in files() if name.startswith(GENERATED) and "Generated" in text(name))
INCLUDES = {"unikvm": ["kernel/uapi/unikvm.h"]}

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


def includes(module: ModuleType, name: str) -> list[str]:
    """The headers that the module's docstring lists."""
    listed = [line for line in (module.__doc__ or "").splitlines() if line.startswith("linux/")]
    return ["linux/types.h", *(INCLUDES.get(name) or listed)]


def compile_c(lines: list[str]) -> subprocess.CompletedProcess[str]:
    command = ["gcc", "-w", "-fsyntax-only", "-I", str(TREE), "-x", "c", "-"]
    return subprocess.run(command, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)


def layout_claims(cls: Any, tag: str) -> list[str]:
    kind = "union" if issubclass(cls, ctypes.Union) else "struct"
    claims = [f'_Static_assert(sizeof({kind} {tag}) == {ctypes.sizeof(cls)}, "size of {tag}");']
    for field, *_ in cls._fields_:
        descriptor = getattr(cls, field)
        if field.startswith("_u") or descriptor.size >> 16:  # anonymous, or a bit field
            continue
        claims.append(
            f"_Static_assert(__builtin_offsetof({kind} {tag}, {field}) == {descriptor.offset}, "
            f'"place of {tag}.{field}");'
        )
    return claims


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_values(name: str) -> None:
    module = importlib.import_module(f"unikvm.uapi.{name}")
    head = [f"#include <{header}>" for header in includes(module, name)]
    claims = []
    for tag, value in vars(module).items():
        if isinstance(value, type) and "unnamed" not in (value.__doc__ or "") and value.__module__ == module.__name__:
            claims += layout_claims(value, tag)
        elif isinstance(value, int) and tag.isupper() and tag != "TYPE_CHECKING" and not tag.endswith("_OFFSET"):
            suffix = "" if value < 0 else "ull"
            claims += [f"#ifdef {tag}", f'_Static_assert({tag} == {value}{suffix}, "{tag}");', "#endif"]
    assert len(claims) >= 6  # virtio_vsock: three for each of two values
    done = compile_c([*head, *claims])
    assert not done.returncode, done.stderr


def test_check_sees_a_stale_file(tmp_path: Path) -> None:
    """A value, a place and a size that the headers contradict are each named; padding that became a field is not."""
    script = text("scripts/gen-uapi")
    scope: dict[str, Any] = {"__name__": "gen_uapi", "__file__": str(TREE / "scripts/gen-uapi")}
    exec(compile(script, "gen-uapi", "exec"), scope)
    head = "import ctypes\n"
    old = head + (
        "A = 1\nclass s(ctypes.Structure):\n"
        '    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint32), ("pad", ctypes.c_uint32 * 4))\n'
    )
    new = old.replace('("pad", ctypes.c_uint32 * 4)', '("c", ctypes.c_uint32), ("pad", ctypes.c_uint32 * 3)')
    stale = scope["stale"]
    assert stale("m", old, old) == []
    assert stale("m", old, f'"""Generated from others."""\n{new}B = 2\n') == []
    assert "A is" in stale("m", old, old.replace("A = 1", "A = 2"))[0]
    swapped = old.replace('"a"', '"x"').replace('"b"', '"a"').replace('"x"', '"b"')
    assert any("s.a is at 4" in problem for problem in stale("m", old, swapped))
    assert "24 bytes" not in stale("m", old, old.replace("* 4", "* 5"))[0]
    assert "has 28 bytes, not 24" in stale("m", old, old.replace("* 4", "* 5"))[0]
    assert stale("m", "", old) == ["it is missing"]


def test_committed_files_are_fresh() -> None:
    modules = [name for name in NAMES if name != "unikvm" or (TREE / "kernel/uapi/unikvm.h").exists()]
    command = [sys.executable, str(TREE / "scripts/gen-uapi"), "--check", *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
