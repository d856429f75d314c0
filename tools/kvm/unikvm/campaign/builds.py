# SPDX-License-Identifier: GPL-2.0-only
"""Builds the halves of a commit in its worktree, by the commit's own meson files.

What is built is kept in the cache under the name of its sources: commits share a half in which they do not differ.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.guest import busybox_binary
from unikvm.images.kernel import Kernel

Say = Callable[[str], object]

INIT = "tools/kvm/guest/init"
MODULE = "kernel/unikvm.ko"
LOG_TAIL = 60  # lines of a failed build
CCACHE = "/usr/lib/ccache"  # links named as the compilers, on Debian; see ccache(1), "RUN MODES"
# Set by an outer make, or meant for a userspace build: not for Kbuild, nor for static programs.
NOT_OURS = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "CPPFLAGS", "LDFLAGS")


class BuildFailed(CannotRun):
    """A half does not build; `log` is the end of what the build said."""

    def __init__(self, half: str, log: str) -> None:
        errors = [line for line in log.splitlines() if "error" in line.lower()] or log.strip().splitlines()[-1:]
        super().__init__(f"the {half} does not build: {errors[0].strip() if errors else 'no output'}")
        self.log = log


def kernel_half(
    tree: str, content: str, kernel: Kernel, headers: Callable[[], AbstractContextManager[str]], say: Say
) -> str:
    """The path of unikvm.ko, built for `kernel` from the worktree `tree`; `content` names its sources.

    `headers` gives the folder to build against; it is asked only where there is something to build.
    """
    name = f"kernel-half-{content}-{cache.digest(kernel.release, cache.identity(kernel.image))}"
    target = cache.entry("halves", name, "unikvm.ko")
    if os.path.exists(target):
        cache.used(target)
        return target
    with cache.locked(name, say):
        if not os.path.exists(target):
            say("building the kernel half")
            with headers() as folder:
                options = ["-Dkernel_half=enabled", f"-Dkernel_dir={folder}", "-Dguest=disabled", "-Dpayloads=disabled"]
                _keep(target, _ninja(tree, f"kernel-{kernel.release}", options, MODULE, "kernel half"))
    return target


def user_half(tree: str, content: str, say: Say) -> None:
    """Make the worktree `tree` ready to run: the init of guests, and bytecode. Raises BuildFailed.

    A host VM has no network, so the busybox of guests is fetched now.
    """
    busybox_binary(say)
    link = os.path.join(tree, "build/venv")
    os.makedirs(os.path.dirname(link), exist_ok=True)
    if not os.path.islink(link):
        os.symlink(os.path.realpath(_venv()), link)
    target = cache.entry("halves", f"user-half-{content}", "init")
    with cache.locked(f"user-half-{content}", say):
        if not os.path.exists(target):
            say("building the user half")
            options = ["-Dkernel_half=disabled", "-Dpayloads=disabled"]
            _keep(target, _ninja(tree, "user", options, INIT, "user half"))
    cache.used(target)
    place = os.path.join(tree, "build/user", INIT)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copyfile(target, f"{place}.new")
    os.chmod(f"{place}.new", 0o755)
    os.rename(f"{place}.new", place)
    package = os.path.join(tree, "tools/kvm/unikvm")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "compileall", "-q", package], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildFailed("user half", done.stdout + done.stderr)


def _venv() -> str:
    """What set-up installed for this tree."""
    from unikvm.images.artifacts import BUILD

    return os.path.join(BUILD, "venv")


def _ninja(tree: str, name: str, options: list[str], target: str, half: str) -> str:
    """Configure a build folder of its own and build one target; returns the target's path."""
    folder = os.path.join(tree, "build", name)
    environment = environment_of(tree)
    for tool in ("meson", "ninja"):
        if not shutil.which(tool, path=environment["PATH"]):
            raise CannotRun(f"{tool} is missing", hint="`make setup` installs it")
    commands = [["ninja", "-C", folder, target]]
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        commands.insert(0, ["meson", "setup", *options, folder, tree])
    for command in commands:
        run_build(command, tree, environment, half)
    return os.path.join(folder, target)


def run_build(command: list[str], tree: str, environment: dict[str, str], what: str) -> None:
    """Run one command of a build in `tree`. BuildFailed where it fails; CannotRun where the disk is full."""
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        if "No space left on device" in done.stdout:
            raise cache.no_room()
        log = re.sub(rf"\S*/{re.escape(os.path.basename(tree))}/", "", done.stdout)
        raise BuildFailed(what, "\n".join(log.splitlines()[-LOG_TAIL:]))


def environment_of(tree: str) -> dict[str, str]:
    """The environment of a build below `tree`: our tools first, with ccache where it is installed."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    path = [
        os.path.join(tree, "build/venv/bin"),
        os.path.join(_venv(), "bin"),
        environment.get("PATH", "/usr/bin:/bin"),
    ]
    if os.path.isdir(CCACHE):
        path.insert(0, CCACHE)
        # Each commit has a folder of its own: without this no compilation would be the same as another's.
        environment |= {"CCACHE_DIR": cache.entry("ccache"), "CCACHE_BASEDIR": tree, "CCACHE_NOHASHDIR": "1"}
    environment["PATH"] = ":".join(path)
    return environment


def _keep(target: str, built: str) -> None:
    with cache.making(os.path.dirname(target)) as work:
        shutil.copyfile(built, os.path.join(work, os.path.basename(target)))
