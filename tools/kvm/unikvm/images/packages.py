# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages, fetched and unpacked into the cache without root: apt verifies them, dpkg-deb unpacks them."""

from __future__ import annotations

import os

from unikvm.errors import CannotRun
from unikvm.images import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import CompletedProcess

    from unikvm.images.cache import Say

META_VALID = 24 * 3600  # seconds for which a meta package's answer is believed
IMAGE = "linux-image-"
# apt drops its rights to download, and warns when it cannot: as root it must not try. Its default of three retries
# keeps a machine without a network waiting for eight seconds.
APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1")


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
    import shutil

    what = ", ".join(names)
    if not shutil.which("apt-get"):
        raise CannotRun(f"{what} cannot be fetched: there is no apt here", hint="give the path of a kernel")
    say(f"fetching {what}")
    download = os.path.join(folder, ".download")
    os.mkdir(download)
    done = _run(["apt-get", *APT_OPTIONS, "download", *names], download)
    debs = [entry for entry in os.listdir(download) if entry.endswith(".deb")]
    if done.returncode or len(debs) != len(names):
        raise _why(what, done.stderr)
    for deb in debs:
        unpack(os.path.join(download, deb), folder)
    shutil.rmtree(download)


def _run(command: Sequence[str], folder: str | None = None) -> CompletedProcess[str]:
    """Run a program that asks nothing, speaks the language that is read here, and ends when this process is killed."""
    import shutil
    import subprocess

    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return subprocess.run(
        [*guard, *command],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        input="",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _why(name: str, errors: str) -> CannotRun:
    """apt's words as one line that says what to do."""
    if "Unable to locate package" in errors or "no installation candidate" in errors:
        return CannotRun(f"apt knows no package {name}", hint="`apt-get update` renews its lists")
    if "No space left" in errors or "enough free space" in errors:
        return cache.no_room()
    lines = [line.removeprefix("E: ") for line in errors.splitlines() if line.startswith("E: ")]
    # "Failed to fetch ADDRESS  REASON [IP: ...]"
    reason = lines[0].partition("  ")[2].partition(" [IP")[0] or lines[0] if lines else "apt-get ended early"
    old = reason.startswith("404") or "File has unexpected size" in errors or "Hash Sum mismatch" in errors
    hint = "`apt-get update` renews apt's lists" if old else "is the network up?"
    return CannotRun(f"fetching {name} failed: {' '.join(reason.split())}", hint=hint)


def unpack(deb: str, target: str) -> None:
    """Unpack a .deb's files below `target`. CannotRun when it is damaged."""
    import shutil

    if not shutil.which("dpkg-deb"):
        from unikvm.images import deb as without_dpkg

        without_dpkg.unpack(deb, target)
        return
    done = _run(["dpkg-deb", "-x", deb, target])
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["dpkg-deb failed"]
        if "No space left" in done.stderr:
            raise cache.no_room()
        raise CannotRun(f"{deb} is not a sound package: {lines[-1].removeprefix('dpkg-deb: error: ')}")


def meant_by(name: str, say: Say) -> str:
    """The package that the meta package `name` stands for: the kernel among its dependencies.

    Asks apt once a day; where apt knows nothing, the last answer holds, and that is said.
    """
    import time

    note = cache.entry("meta", name)
    fresh = os.path.exists(note) and time.time() - os.stat(note).st_mtime < META_VALID
    if not fresh:
        found = next((package for package in dependencies(name) if package.startswith(IMAGE)), None)
        if found:
            cache.write(note, [found.encode()])
            return found
    if not os.path.exists(note):
        hint = "`apt-get update` renews its lists; or name a kernel, or a command after `--`"
        raise CannotRun(f"apt knows no package {name}", hint=hint)
    with open(note, encoding="utf-8") as file:
        last = file.read()
    if not fresh:
        say(f"apt does not know {name}: going on with {last}")
    return last


def dependencies(name: str) -> list[str]:
    """What the package `name` depends on; nothing where apt does not know it."""
    import shutil

    if not shutil.which("apt-cache"):
        return []
    lines = _run(["apt-cache", "depends", "--important", name]).stdout.splitlines()
    if lines[:1] != [name]:  # apt-cache takes it for a pattern too
        return []
    parts = [line.strip().partition(": ") for line in lines]
    return [package for kind, _, package in parts if kind == "Depends"]


def known_packages(prefix: str) -> list[str]:
    """Names of the packages that begin with `prefix`: those apt knows, and those in the cache."""
    import shutil

    folder = cache.entry("packages")
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if shutil.which("apt-cache"):
        names.update(_run(["apt-cache", "pkgnames", prefix]).stdout.split())
    return sorted(name for name in names if name.startswith(prefix))


def is_cached(release: str) -> bool:
    """Whether the package of the kernel `release` is in the cache."""
    return os.path.isdir(cache.entry("packages", f"{IMAGE}{release}"))
