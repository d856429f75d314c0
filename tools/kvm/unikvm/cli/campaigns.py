# SPDX-License-Identifier: GPL-2.0-only
"""What `bisect` and `check` share: the checkout, its revisions, a test that means the same in all runs, their files."""

from __future__ import annotations

import os

from unikvm.cli.plan import say
from unikvm.errors import CannotRun


def checkout(path: str, *, dirty: bool) -> str:
    """The top of the checkout around `path`. CannotRun where it has changes, which no run tests, unless `dirty`."""
    from unikvm.campaign.git import git

    source = git(path, "rev-parse", "--show-toplevel").strip()
    changed = git(source, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed and not dirty:
        raise CannotRun(
            f"the checkout {source} has {len(changed)} changed files, which no run would test",
            hint="commit or stash them, or --dirty to go on without them",
        )
    return source


def resolved(source: str, rev: str, what: str) -> str:
    """The commit's SHA."""
    from unikvm.campaign.git import git

    try:
        return git(source, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}").strip()
    except CannotRun:
        raise CannotRun(f"{what} {rev}: no such commit in {source}") from None


def is_payload(path: str) -> bool:
    """Whether a file is a bare-metal payload: an ELF with a PVH note, or a multiboot kernel."""
    from unikvm.boot import elf, multiboot, pvh
    from unikvm.boot.image import Image

    if not os.path.isfile(path):
        return False
    image = Image.open(path)
    try:
        if image.pread(4, 0) == b"\x7fELF" and pvh.entry_point(image, elf.parse(image)) is not None:
            return True
        return multiboot.find_header(image) is not None
    except CannotRun:
        return False
    finally:
        os.close(image.fd)


def pinned(command: list[str]) -> tuple[str, ...]:
    """TEST as it is run in the host VM.

    A payload is run by `unikvm run`. Where that has no kernel, the guest's kernel is named: all runs boot the same.
    """
    from unikvm.cli.main import split_command
    from unikvm.cli.run import quick_parse

    if is_payload(command[0]):
        command = ["unikvm", "run", *command]
    if command[:2] != ["unikvm", "run"]:
        return tuple(command)
    options, _ = split_command(command[2:])
    parsed = quick_parse(options)
    if parsed is None or parsed.image or parsed.kernel:
        return tuple(command)
    from unikvm.images.kernel import find_kernel
    from unikvm.images.packages import is_cached

    kernel = find_kernel(None, progress=say)
    # By its name, where every worker of a cluster can fetch it; the machine's own kernel by its path.
    name = kernel.release if is_cached(kernel.release) else kernel.image
    return (*command[:2], "--kernel", name, *command[2:])


def write(path: str, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from error
