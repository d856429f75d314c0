# SPDX-License-Identifier: GPL-2.0-only
"""Where processes of one user meet: a directory for sockets that nobody else may enter."""

from __future__ import annotations

import os
import stat

from unikvm.errors import CannotRun

MAX_NAME = 32  # letters: a socket's path has 107


def is_name(name: str) -> bool:
    """Whether `name` can be that of a guest or a network: a word that is a file's name everywhere."""
    return name.replace("-", "").replace("_", "").isalnum() and name.isascii() and len(name) <= MAX_NAME


def _base() -> str:
    # A login and `sudo` have to agree: only the first has the variable.
    user = f"/run/user/{os.geteuid()}"
    return os.environ.get("XDG_RUNTIME_DIR") or (user if os.path.isdir(user) else "/tmp")


def directory(*parts: str) -> str:
    """The directory `parts` of this user's, made if need be. CannotRun where it is not ours alone."""
    path = ""
    for part in (f"unikvm-{os.geteuid()}", *parts):
        path = f"{path or _base()}/{part}"
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise CannotRun(f"{path}: {error.strerror}", hint="XDG_RUNTIME_DIR names another place") from None
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise CannotRun(f"{path} is open to others", hint="remove it")
    return path
