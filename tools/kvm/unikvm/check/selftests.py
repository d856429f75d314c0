# SPDX-License-Identifier: GPL-2.0-only
"""KVM selftests (Linux: tools/testing/selftests/kvm), of a Linux tree or of Debian's source, built in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from unikvm.check.job import HOST, SELFTEST, Task
from unikvm.errors import CannotRun
from unikvm.images import cache, packages

Say = Callable[[str], object]

DEBIAN = "linux-source"  # in place of a path
WHERE = "tools/testing/selftests/kvm"
# Of the 1.3 GB of a Linux tree the 8 MB that selftests are built from.
NEEDED = ("tools/testing/selftests/kvm/*", "tools/testing/selftests/*.h", "tools/testing/selftests/*.mk",
          "tools/testing/selftests/rseq/*", "tools/include/*", "tools/arch/x86/include/*", "tools/scripts/*",
          "tools/build/*", "tools/lib/*.c", "scripts/subarch.include")  # fmt: skip
MEMORY = 4 << 30  # bytes of the host VM: some tests want a GiB for a guest
_LIST = "unikvm-list:; @echo $(TEST_GEN_PROGS)"


@dataclass(frozen=True)
class Program:
    """A test: its name as its Makefile has it, its path, and why it is not there."""

    name: str
    path: str
    missing: str = ""


def programs(where: str, release: str, jobs: int, say: Say) -> list[Program]:
    """The selftests of `where`, built: a Linux tree, or DEBIAN: the source of the kernel `release`. CannotRun."""
    tree = _debian(release, say) if where == DEBIAN else os.path.abspath(where)
    folder = os.path.join(tree, WHERE)
    if not os.path.exists(os.path.join(folder, "Makefile")):
        raise CannotRun(f"{where} is no Linux tree: it has no {WHERE}", hint=f"--selftests DIR, or {DEBIAN}")
    output = cache.entry("selftests", f"build-{cache.digest(tree)}")
    # What the surroundings set for another build is not for this one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "CFLAGS", "MFLAGS"))
    }
    make = ["make", "-s", "-C", folder, f"OUTPUT={output}", "ARCH=x86_64"]
    with cache.locked("the selftests", say):
        os.makedirs(output, exist_ok=True)
        say("building the KVM selftests")
        built = _make([*make, "-k", f"-j{jobs}"], environment)
        listed = _make([*make, "--eval", _LIST, "unikvm-list"], environment)
    paths = [path for path in listed.stdout.split() if path.startswith(f"{output}/")]
    if not paths:
        lines = (built.stderr or listed.stderr).strip().splitlines() or ["make says nothing"]
        raise CannotRun(f"the selftests of {where} do not build: {lines[-1]}")
    names = [os.path.relpath(path, output) for path in paths]
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.exists(path)]
    if len(missing) == len(paths):
        errors = [line for line in built.stderr.splitlines() if "error" in line] or built.stderr.splitlines()[-1:]
        raise CannotRun(f"the selftests of {where} do not build: {errors[0] if errors else 'make says nothing'}")
    if missing:
        say(f"{len(missing)} selftests do not build: {', '.join(missing[:3])}")
    return [
        Program(name, path, "it does not build" if name in missing else "")
        for name, path in zip(names, paths, strict=True)
    ]


def _make(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env=environment, input="", capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise CannotRun("make is missing", hint="`make setup` installs it") from None


def _debian(release: str, say: Say) -> str:
    """The part of Debian's source of the kernel `release` that selftests are built from, in the cache."""
    package = f"{DEBIAN}-{'.'.join(release.split('.')[:2])}"
    tree = cache.entry("selftests", f"{package}-{cache.digest(*NEEDED)}")
    if os.path.isdir(tree):
        return tree
    with cache.locked(f"unpacking {package}", say):
        if not os.path.isdir(tree):
            with cache.making(tree) as work:
                _unpack(package, work, say)
    return tree


def _unpack(package: str, work: str, say: Say) -> None:
    """Fetch the package, take out what is needed, and let the 140 MB of the rest go."""
    if not shutil.which("xz"):
        raise CannotRun("xz is missing", hint="install the package xz-utils")
    fetched = os.path.join(work, ".package")
    os.mkdir(fetched)
    packages.fetch_into(fetched, [package], say)
    archive = os.path.join(fetched, "usr/src", f"{package}.tar.xz")
    say(f"unpacking {package}")
    command = ["tar", "-x", "-f", archive, "-C", work, "--strip-components=1", "--wildcards"]
    done = subprocess.run(
        [*command, *(f"{package}/{pattern}" for pattern in NEEDED)], capture_output=True, text=True, check=False
    )
    if not os.path.exists(os.path.join(work, WHERE, "Makefile")):
        lines = done.stderr.strip().splitlines() or ["tar says nothing"]
        raise CannotRun(f"{package} cannot be unpacked: {lines[-1]}")
    shutil.rmtree(fetched)


def tasks(found: Sequence[Program], patterns: Sequence[str], seconds: float) -> list[Task]:
    """A task for each program that one of `patterns` names (without patterns: for all)."""
    return [
        Task(
            program.name,
            HOST,
            (program.path,),
            cwd=os.path.dirname(program.path),
            timeout=seconds,
            reads=SELFTEST,
            skip=program.missing,
        )
        for program in found
        if not patterns or any(fnmatchcase(name, p) for name in (program.name, _base(program.name)) for p in patterns)
    ]


def _base(name: str) -> str:
    return name.rpartition("/")[2]
