# SPDX-License-Identifier: GPL-2.0-only
"""What the documents name exists: paths of the tree, targets of the Makefile, commands of unikvm."""

from __future__ import annotations

import re

import pytest

from style.tree import TREE, files, text

DOCS = [name for name in files() if name.endswith(".md")]
ROOTS = ("kernel/", "tools/", "tests/", "scripts/", "Documentation/", ".ci/")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def paths_in(content: str) -> set[str]:
    """Words in code spans and targets of links that look like paths of this tree."""
    words = {word for span in CODE.findall(content) for word in span.split()}
    return {word.strip("`.,:;()") for word in words if word.startswith(ROOTS)}


@pytest.mark.parametrize("name", DOCS)
def test_paths_exist(name: str) -> None:
    missing = [path for path in paths_in(text(name)) if not any(TREE.glob(path.rstrip("/")))]
    assert not missing
    here = (TREE / name).parent
    dead = [link for link in LINK.findall(text(name)) if "://" not in link and not (here / link).exists()]
    assert not dead


@pytest.mark.parametrize("name", DOCS)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)[^`]*`", text(name)))
    assert named <= targets


@pytest.mark.parametrize("name", DOCS)
def test_commands_exist(name: str) -> None:
    named = set(re.findall(r"`unikvm ([a-z]+)[^`]*`", text(name)))
    assert all((TREE / f"tools/kvm/unikvm/cli/{command}.py").exists() for command in named)


def test_makefile_helps_with_every_target() -> None:
    makefile = text("Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"help"}
    assert all(f"make {target}" in makefile for target in targets)
