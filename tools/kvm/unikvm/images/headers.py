# SPDX-License-Identifier: GPL-2.0-only
"""Headers to build modules against, from Debian's packages, without root: unpacked into the cache and made to work."""

from __future__ import annotations

import os

from unikvm.images import cache, packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unikvm.images.cache import Say

LAYOUT = "1"  # changes when the same packages would make another directory
# From 6.12 on the headers have the kernel's BTF with them, and modules get their own by pahole, which is not among the
# package's dependencies: without it no module could be built. A sub-make takes the configuration from its command line.
WITHOUT_PAHOLE = """\
ifeq ($(shell pahole --version 2>/dev/null),)
MAKEOVERRIDES += CONFIG_DEBUG_INFO_BTF_MODULES=
endif
"""


def fetched(release: str, say: Say) -> str:
    """The build directory for the kernel `release`, in the cache; its packages are fetched when they are not there."""
    path = cache.entry("headers", f"{release}-{LAYOUT}")
    inside = os.path.join(path, "usr/src", f"linux-headers-{release}")
    if not os.path.isdir(inside):
        with cache.locked(f"headers of {release}", say):
            if not os.path.isdir(inside):
                _make(release, path, say)
    return inside


def _make(release: str, path: str, say: Say) -> None:
    """Unpack the three packages that Debian splits headers into, over each other."""
    name = f"linux-headers-{release}"
    parts = [part for part in packages.dependencies(name) if part.startswith(("linux-headers-", "linux-kbuild-"))]
    with cache.making(path) as work:
        packages.fetch_into(work, [name, *parts], say)
        # It includes the common Makefile by the path at which dpkg would install it. Its links are relative.
        makefile = os.path.join(work, "usr/src", name, "Makefile")
        with open(makefile, encoding="utf-8") as file:
            text = file.read()
        with open(makefile, "w", encoding="utf-8") as file:
            file.write(WITHOUT_PAHOLE + text.replace("/usr/src/", f"{path}/usr/src/"))
