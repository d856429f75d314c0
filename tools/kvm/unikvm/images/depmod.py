# SPDX-License-Identifier: GPL-2.0-only
"""A kernel's modules as modprobe wants them: with modules.dep and its companions, which depmod makes.

The package manager runs depmod for an installed kernel; nobody did for a package that was only unpacked, or for a build
tree.
"""

from __future__ import annotations

import os
import subprocess

from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import quiet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.images.cache import Say

INDEX = "modules.devname"  # what depmod writes last
LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")  # of a build, which depmod reads
PLACES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")  # not all are in an ordinary user's PATH


def find() -> str:
    """The path of depmod, or an empty string."""
    paths = [f"{place}/depmod" for place in PLACES]
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def indexed(modules: str, release: str, say: Say = quiet) -> str:
    """A directory with the modules in `modules` (lib/modules/RELEASE, or a build tree) in which modprobe finds them.

    `modules` itself where it is indexed, or is the cache's and can be. Where that cannot be had, `say` is told why.
    """
    if not modules or os.path.exists(os.path.join(modules, INDEX)):
        return modules
    inside = os.path.realpath(modules).startswith(os.path.realpath(cache.root()) + "/")
    suffix = f"/lib/modules/{release}"
    try:
        if inside and modules.endswith(suffix):
            with cache.locked(f"indexing the modules of {release}", say):
                if not os.path.exists(os.path.join(modules, INDEX)):
                    _depmod(modules.removesuffix(suffix) or "/", release)
            return modules
        return _beside(modules, release, say)
    except (CannotRun, OSError) as error:
        say(f"modprobe in the guest will not find modules by name: {error}")
        return modules


def _beside(modules: str, release: str, say: Say) -> str:
    """A directory of the cache that points to the modules, which stay where they are and as they are."""
    made = [cache.identity(path) for path in (modules, *_lists(modules))]
    folder = cache.entry("modules", f"indexed-{cache.digest(release, modules, *made)}")
    place = f"lib/modules/{release}"
    if not os.path.isdir(folder):
        with cache.locked(f"indexing the modules of {release}", say):
            if not os.path.isdir(folder):
                with cache.making(folder) as work:
                    os.makedirs(os.path.join(work, place))
                    for path in _lists(modules):
                        with open(path, "rb") as source, open(f"{work}/{place}/{os.path.basename(path)}", "wb") as copy:
                            copy.write(source.read())
                    os.symlink(os.path.realpath(modules), f"{work}/{place}/kernel")
                    _depmod(work, release)
    return os.path.join(folder, place)


def _lists(modules: str) -> list[str]:
    return [path for name in LISTS if os.path.exists(path := os.path.join(modules, name))]


def _depmod(base: str, release: str) -> None:
    program = find()
    if not program:
        raise CannotRun("there is no depmod here", hint="`make setup` installs kmod")
    done = subprocess.run([program, "-b", base, release], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or [f"status {done.returncode}"]
        raise CannotRun(f"depmod: {lines[-1]}")
