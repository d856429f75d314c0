# SPDX-License-Identifier: GPL-2.0-only
"""What every source file has, and what none has."""

from __future__ import annotations

import ast
import re

import pytest

from style.tree import GENERATED, TREE, files, is_c, is_python, text

SPDX = "SPDX-License-Identifier: GPL-2.0-only"
# The kernel's headers for userspace carry the exception that lets programs of any licence include them.
SPDX_UAPI = "SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note"
NO_COMMENTS = ("LICENSE", "MAINTAINERS", ".md", ".json", ".txt")
MAX_FILE_LINES = 550
MAX_FUNCTION_LINES = 70

SOURCES = [name for name in files() if not name.endswith(NO_COMMENTS) and text(name).strip()]
PYTHON = [name for name in SOURCES if is_python(name) and not name.startswith(GENERATED)]
C = [name for name in SOURCES if is_c(name)]


@pytest.mark.parametrize("name", SOURCES)
def test_licence_is_named(name: str) -> None:
    head = text(name).splitlines()[:2]
    wanted = (SPDX, SPDX_UAPI)
    assert any(line.rstrip().removesuffix("*/").rstrip().endswith(wanted) for line in head), (
        f"{name}: the first or second line has to be `# {SPDX}`"
    )


@pytest.mark.parametrize("name", PYTHON + C)
def test_files_are_short(name: str) -> None:
    lines = len(text(name).splitlines())
    assert lines <= MAX_FILE_LINES, f"{name} has {lines} lines: split it"


@pytest.mark.parametrize("name", PYTHON)
def test_python_functions_are_short(name: str) -> None:
    for node in ast.walk(ast.parse(text(name))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{name}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("name", C)
def test_c_functions_are_short(name: str) -> None:
    start = 0
    for number, line in enumerate(text(name).splitlines(), 1):
        if line == "{":
            start = number
        elif line == "}" and start:
            assert number - start <= MAX_FUNCTION_LINES, f"{name}:{start}: a function of {number - start} lines"
            start = 0


@pytest.mark.parametrize("name", [name for name in PYTHON if name.startswith("tools/kvm/unikvm/")])
def test_only_cli_exits(name: str) -> None:
    """The rest raises errors with an outcome. A forked child may leave by os._exit: it is not the program. A
    `__main__` is one."""
    if "/cli/" in name or name.endswith("/__main__.py"):
        return
    forks = "os.fork()" in text(name)
    for node in ast.walk(ast.parse(text(name))):
        if isinstance(node, ast.Name):
            assert node.id not in ("SystemExit", "exit", "quit"), f"{name}:{node.lineno}: only cli exits"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called != "sys.exit", f"{name}:{node.lineno}: only cli exits"
            assert called != "os._exit" or forks, f"{name}:{node.lineno}: only cli exits"


def test_version_is_stated_once() -> None:
    match = re.search(r"version: '([\d.]+)'", text("meson.build"))
    assert match
    stated = re.compile(rf"version\W{{1,6}}{re.escape(match[1])}\b", re.IGNORECASE)
    others = [name for name in files() if name != "meson.build" and stated.search(text(name))]
    assert not others, f"the version is meson.build's alone, and in {others}"


def test_no_registry_is_named() -> None:
    """Packages are had by name from whatever the machine's package managers are set up for."""
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"),
             ("snapshot", "debian", "org"), ("ftp", "debian", "org"), ("kernel", "org/pub"))]  # fmt: skip
    found = [f"{name}: {host}" for name in files() for host in hosts if host in text(name)]
    assert not found


def test_no_stray_text() -> None:
    """Lines end with no blanks, and files with one newline."""
    bad = []
    for name in files():
        content = text(name)
        if name == "LICENSE" or not content:
            continue
        bad += [f"{name}:{n}" for n, line in enumerate(content.split("\n"), 1) if line != line.rstrip()]
        if not content.endswith("\n") or content.endswith("\n\n"):
            bad.append(f"{name}: its end")
    assert not bad


def test_programs_are_executable() -> None:
    for name in files():
        if text(name).startswith("#!"):
            assert (TREE / name).stat().st_mode & 0o111, f"{name}: chmod +x"
