# SPDX-License-Identifier: GPL-2.0-only
"""What modprobe reads, made where nobody has made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unikvm.images import cache, depmod

RELEASE = "6.1.0-test"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def modules_in(folder: Path) -> Path:
    (folder / "kernel/fs").mkdir(parents=True)
    (folder / "modules.order").write_text("kernel/fs/some.ko\n")
    (folder / "modules.builtin").write_text("kernel/fs/proc.ko\n")
    return folder


def test_a_package_in_the_cache_is_indexed_in_its_place() -> None:
    modules = modules_in(Path(cache.root()) / "packages/linux/lib/modules" / RELEASE)
    assert depmod.indexed(str(modules), RELEASE) == str(modules)
    assert (modules / "modules.dep").exists()
    assert (modules / depmod.INDEX).exists()


def test_a_tree_stays_as_it_is(tmp_path: Path) -> None:
    tree = modules_in(tmp_path / "linux")
    before = sorted(tree.iterdir())
    made = Path(depmod.indexed(str(tree), RELEASE))
    assert made.parts[-3:] == ("lib", "modules", RELEASE)
    assert (made / "kernel").resolve() == tree
    assert "proc" in (made / "modules.builtin").read_text()
    assert (made / "modules.dep").exists()
    assert sorted(tree.iterdir()) == before
    assert depmod.indexed(str(tree), RELEASE) == str(made)
    (tree / "modules.order").write_text("kernel/fs/another.ko\nkernel/fs/some.ko\n")
    assert depmod.indexed(str(tree), RELEASE) != str(made)


def test_what_is_indexed_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / depmod.INDEX).touch()
    assert depmod.indexed(str(tmp_path), RELEASE) == str(tmp_path)
    assert depmod.indexed("", RELEASE) == ""


def test_without_depmod_the_run_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depmod, "PLACES", ("/no/such",))
    lines: list[str] = []
    tree = modules_in(tmp_path / "linux")
    assert depmod.indexed(str(tree), RELEASE, lines.append) == str(tree)
    assert len(lines) == 1
    assert "`make setup` installs kmod" in lines[0]
