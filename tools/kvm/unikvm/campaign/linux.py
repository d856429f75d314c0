# SPDX-License-Identifier: GPL-2.0-only
"""Host kernels from a Linux git tree: checked out into a tree of our own, built there one after the other, and kept.

The developer's tree is only read. Objects stay, so the next commit builds what differs; with ccache also what was built
before. A host kernel of commit SHA is named `linux:SHA`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unikvm.campaign.builds import environment_of, run_build
from unikvm.campaign.git import Repository, git
from unikvm.errors import CannotRun
from unikvm.images import cache
from unikvm.images.kernel import Kernel, find_kernel, kernel_headers

Say = Callable[[str], object]

PREFIX = "linux:"
MINIMAL = os.path.join(os.path.dirname(__file__), "linux.config")
# The same commit gives the same bytes, so that ccache and the module's key hold.
REPRODUCIBLE = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "unikvm", "KBUILD_BUILD_HOST": "unikvm"}
NEEDED = ("make", "gcc", "ld", "flex", "bison", "bc")  # Linux: Documentation/process/changes.rst


def for_people(name: str) -> str:
    """A host kernel's name as it is shown."""
    return f"Linux {name.removeprefix(PREFIX)[:12]}" if name.startswith(PREFIX) else name


def host_kernel(name: str, source: str, config: str, say: Say) -> Kernel:
    """The host kernel that a job names: `linux:SHA` of the Linux tree `source`, or what find_kernel takes."""
    if not name.startswith(PREFIX):
        return find_kernel(name, progress=say)
    return LinuxTree(source, config).kernel(name.removeprefix(PREFIX), say)


@contextmanager
def headers_of(name: str, source: str, config: str, kernel: Kernel, say: Say) -> Iterator[str]:
    """Where to build modules for a host kernel; nobody builds another commit there meanwhile."""
    if not name.startswith(PREFIX):
        yield kernel_headers(kernel, progress=say)
        return
    with LinuxTree(source, config).at(name.removeprefix(PREFIX), say) as folder:
        yield folder


class LinuxTree:
    """`source`: a directory in a Linux git tree; `config`: a .config, or empty for the minimal one."""

    def __init__(self, source: str, config: str = "") -> None:
        self._source = os.path.realpath(source)
        self._config = config or MINIMAL
        self._minimal = not config
        try:
            with open(self._config, "rb") as file:
                name = cache.digest(self._source, file.read())
        except OSError as error:
            raise CannotRun(f"cannot read {self._config}: {error.strerror}") from error
        self._name = f"linux-{name}"
        self._folder = cache.entry("linux", name)

    def kernel(self, commit: str, say: Say) -> Kernel:
        """The kernel of a commit, with its modules; built when it is not there."""
        place = os.path.join(self._folder, "kernels", commit[:16])
        if not os.path.isdir(place):
            with self.at(commit, say) as objects, cache.making(place) as work:
                shutil.copyfile(os.path.join(objects, "arch/x86/boot/bzImage"), os.path.join(work, "vmlinuz"))
                install = [f"INSTALL_MOD_PATH={work}", "DEPMOD=true", "modules_install"]
                self._run(self._make(commit, *install), "modules_install")
        return Kernel(os.path.join(place, "vmlinuz"), *self._modules(place))

    @staticmethod
    def _modules(place: str) -> tuple[str, str]:
        folder = os.path.join(place, "lib/modules")
        release = os.listdir(folder)[0]
        return release, os.path.join(folder, release)

    @contextmanager
    def at(self, commit: str, say: Say) -> Iterator[str]:
        """The folder of objects, built at `commit`."""
        with cache.locked(self._name, say):
            stamp = os.path.join(self._folder, "built")
            if _read(stamp) != commit:
                self._build(commit, say)
                with open(stamp, "w", encoding="ascii") as file:
                    file.write(commit)
            yield os.path.join(self._folder, "objects")

    def _build(self, commit: str, say: Say) -> None:
        missing = [tool for tool in NEEDED if not shutil.which(tool)]
        if missing:
            raise CannotRun(f"building Linux needs {', '.join(missing)}", hint="install them, and libelf-dev")
        source, objects = (os.path.join(self._folder, name) for name in ("source", "objects"))
        say(
            f"building Linux {commit[:12]} ({'the first one takes minutes' if not os.path.isdir(objects) else 'again'})"
        )
        os.makedirs(objects, exist_ok=True)
        stamp = os.path.join(self._folder, "built")
        if os.path.exists(stamp):
            os.unlink(stamp)
        if not os.path.exists(os.path.join(source, ".git")):
            repository = Repository.borrow(os.path.join(self._folder, "repository.git"), self._source)
            shutil.rmtree(source, ignore_errors=True)
            repository.check_out(commit, source)
        else:
            git(source, "checkout", "--quiet", "--force", "--detach", commit)
        if not os.path.exists(os.path.join(objects, ".config")):
            if self._minimal:
                self._run([*self._make(commit), f"KCONFIG_ALLCONFIG={self._config}", "allnoconfig"], "configuration")
            else:
                shutil.copyfile(self._config, os.path.join(objects, ".config"))
        self._run(self._make(commit, "olddefconfig"), "configuration")
        self._run(self._make(commit, f"-j{os.cpu_count() or 1}", "bzImage", "modules"), "host kernel")

    def _make(self, commit: str, *words: str) -> list[str]:
        source, objects = (os.path.join(self._folder, name) for name in ("source", "objects"))
        # The release names the commit: modules of one are not taken for another's.
        return ["make", "-s", "-C", source, f"O={objects}", f"LOCALVERSION=-g{commit[:12]}", *words]

    def _run(self, command: list[str], what: str) -> None:
        source = os.path.join(self._folder, "source")
        run_build(command, source, {**environment_of(self._folder), **REPRODUCIBLE}, what)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
