# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages, fetched and unpacked into the cache without root: apt verifies them, dpkg-deb unpacks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.cache import Say

META_VALID = 24 * 3600  # seconds for which a meta package's answer is believed


def fetched(name: str, say: Say) -> str:
    """The directory into which the package `name` is unpacked; fetched when it is not in the cache."""
    path = cache.entry("packages", name)
    if os.path.isdir(path):
        return path
    with cache.locked(f"fetching {name}", say):
        if not os.path.isdir(path):
            with cache.making(path) as work:
                fetch_into(work, [name], say)
    return path


def fetch_into(folder: str, names: Sequence[str], say: Say) -> None:
    """Fetch packages and unpack them over each other into `folder`."""
    what = ", ".join(names)
    if not shutil.which("apt-get"):
        raise CannotRun(f"{what} cannot be fetched: there is no apt here", hint="give the path of a kernel")
    say(f"fetching {what}")
    download = os.path.join(folder, ".download")
    os.mkdir(download)
    # apt drops its rights to download, and warns when it cannot: as root it must not try.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names]
    done = subprocess.run(command, cwd=download, capture_output=True, text=True, check=False)
    debs = [entry for entry in os.listdir(download) if entry.endswith(".deb")]
    if done.returncode or len(debs) != len(names):
        raise _why(what, done.stderr)
    for deb in debs:
        unpack(os.path.join(download, deb), folder)
    shutil.rmtree(download)


def _why(name: str, errors: str) -> CannotRun:
    """apt's words as one line that says what to do."""
    if "Unable to locate package" in errors or "no installation candidate" in errors:
        return CannotRun(f"apt knows no package {name}", hint="`apt-get update` renews its lists")
    if "space" in errors and "device" in errors:
        return CannotRun(f"no room in the cache {cache.root()}", hint="remove what is in it, or set XDG_CACHE_HOME")
    lines = [line.removeprefix("E: ") for line in errors.splitlines() if line.startswith("E: ")]
    return CannotRun(
        f"fetching {name} failed: {lines[0] if lines else 'apt-get ended early'}", hint="is the network up?"
    )


def unpack(deb: str, target: str) -> None:
    """Unpack a .deb's files below `target`. CannotRun when it is damaged."""
    if not shutil.which("dpkg-deb"):
        raise CannotRun(f"cannot unpack {deb}: dpkg-deb is missing", hint="install the package dpkg")
    done = subprocess.run(["dpkg-deb", "-x", deb, target], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["dpkg-deb failed"]
        if "No space left" in done.stderr:
            raise CannotRun(f"no room in the cache {cache.root()}", hint="remove what is in it, or set XDG_CACHE_HOME")
        raise CannotRun(f"{deb} is not a sound package: {lines[-1].removeprefix('dpkg-deb: error: ')}")


def meant_by(name: str, say: Say) -> str:
    """The package that the meta package `name` stands for: its first dependency.

    Asks apt once a day; where apt knows nothing, the last answer holds, and that is said.
    """
    note = cache.entry("meta", name)
    fresh = os.path.exists(note) and time.time() - os.stat(note).st_mtime < META_VALID
    if not fresh:
        found = dependencies(name)
        if found:
            cache.write(note, [found[0].encode()])
            return found[0]
    if not os.path.exists(note):
        raise CannotRun(f"apt knows no package {name}", hint="`apt-get update` renews its lists; or name a kernel")
    with open(note, encoding="utf-8") as file:
        last = file.read()
    if not fresh:
        say(f"apt does not know {name}: going on with {last}")
    return last


def dependencies(name: str) -> list[str]:
    """What the package `name` depends on; nothing where apt does not know it."""
    if not shutil.which("apt-cache"):
        return []
    done = subprocess.run(["apt-cache", "depends", "--important", name], capture_output=True, text=True, check=False)
    lines = [line.strip().partition(": ") for line in done.stdout.splitlines()]
    return [package for kind, _, package in lines if kind == "Depends"]
