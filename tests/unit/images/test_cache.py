# SPDX-License-Identifier: GPL-2.0-only
"""The cache: whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unikvm.errors import CANNOT_RUN, CannotRun
from unikvm.images import cache

TOOLS = Path(__file__).resolve().parents[3] / "tools/kvm"


def unfinished(own_cache: Path) -> list[Path]:
    return list(own_cache.rglob(f"{cache.UNFINISHED}*"))


def test_a_directory_appears_when_it_is_whole(own_cache: Path) -> None:
    path = cache.entry("some", "thing")
    with cache.making(path) as work:
        Path(work, "file").write_text("x")
        assert not os.path.exists(path)
    assert Path(path, "file").read_text() == "x"
    assert not unfinished(own_cache)


@pytest.mark.parametrize("failure", [CannotRun("no"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_nothing(own_cache: Path, failure: BaseException) -> None:
    path = cache.entry("some", "thing")

    def chunks() -> list[bytes]:
        raise failure

    with pytest.raises(type(failure)), cache.making(path):
        raise failure
    with pytest.raises(type(failure)):
        cache.write(path, (chunk for _ in range(1) for chunk in chunks()))
    assert not os.path.exists(path)
    assert not unfinished(own_cache)


def test_what_was_abandoned_is_removed_and_what_is_made_is_not(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ABANDONED_AFTER", -1)
    folder = own_cache / "some"
    folder.mkdir(parents=True)
    (folder / ".new-dead").mkdir()
    (folder / ".new-dead/file").touch()
    (folder / ".new-file").touch()
    with cache.making(str(folder / "a")) as work, cache.making(str(folder / "b")):
        cache.write(str(folder / "c"), [b""])
        assert os.path.isdir(work)
    assert sorted(os.listdir(folder)) == ["a", "b", "c"]


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    with pytest.raises(CannotRun, match=f"no room in the cache {small_disk}/unikvm: it holds 0 MiB, 0 MiB are free"):
        cache.write(cache.entry("some", "file"), [bytes(1 << 20)])
    with pytest.raises(CannotRun, match="no room") as error, cache.making(cache.entry("some", "dir")) as work:
        Path(work, "file").write_bytes(bytes(1 << 20))
    assert error.value.outcome == CANNOT_RUN
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotRun, match="XDG_CACHE_HOME names another place"):
        cache.root()


def test_a_place_that_is_taken(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    (own_cache / "some").touch()
    (own_cache / "x.lock").mkdir()
    with pytest.raises(CannotRun, match="cannot write to the cache"):
        cache.write(cache.entry("some", "file"), [b""])
    with pytest.raises(CannotRun, match="cannot write to the cache"), cache.making(cache.entry("some", "file")):
        pass
    with pytest.raises(CannotRun, match="cannot write to the cache"), cache.locked("x", print):
        pass


def test_an_error_of_another_place_is_not_the_caches() -> None:
    with pytest.raises(CannotRun, match=r"^/no/such: No such file"), cache.making(cache.entry("some", "thing")):
        open("/no/such")


def test_the_last_used_are_kept() -> None:
    folder = cache.entry("files")
    for number in range(5):
        cache.write(os.path.join(folder, str(number)), [b""])
        os.utime(os.path.join(folder, str(number)), (number, number))
    os.mkdir(os.path.join(folder, "by-name"))
    cache.used(os.path.join(folder, "1"))
    cache.keep_newest(folder, 2)
    assert sorted(os.listdir(folder)) == ["1", "4", "by-name"]


def test_a_start_imports_little() -> None:
    """What every run of a Linux guest imports is not to bring half the standard library along."""
    code = f"""import sys; sys.path.insert(0, {str(TOOLS)!r})
from unikvm.images import guest, vmlinux
print(*{{"contextlib", "collections", "hashlib", "json", "re", "shutil", "subprocess", "typing"}} & {{*sys.modules}})"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
