# SPDX-License-Identifier: GPL-2.0-only
"""Directories of this machine in the guest (--root, --rwdir), and as whom, where and with what the command runs there.

Imported for runs that ask for any of it.
"""

from __future__ import annotations

import os

from unikvm.cli.plan import Export, Plan
from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unikvm.cli.plan import Say

ROOT_TAG = "root"
MODULES_TAG = "modules"
GUEST_MODULES = ("virtiofs", "overlay")  # beside those of every guest
SHELL = "sh"


class User:
    """Who the command runs as: numbers for init (`UID:GID,GROUP...`, empty for root), and a login's environment."""

    def __init__(self, ids: str, environment: dict[str, str]) -> None:
        self.ids = ids
        self.environment = environment


def add(plan: Plan, args: Any) -> Plan:
    """`plan` with what `args` ask for. CannotRun where something of it is not there."""
    if not plan.linux:
        raise CannotRun(
            "a payload has no files and no users", hint="--root, --rwdir, --user, --env and --cwd: for Linux"
        )
    root = _directory("--root", args.root) if args.root else None
    exports = [Export(ROOT_TAG, root, "/", True)] if root else []
    for number, text in enumerate(args.rwdir):
        exports.append(_rwdir(number, text, root))
    user = _user(args.user, root)
    environment = {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
    environment.update(user.environment)
    for text in args.env:
        name, equals, value = text.partition("=")
        if not name:
            raise CannotRun(f"--env {text}: no name", hint="NAME=VALUE, or NAME for this machine's value")
        environment[name] = value if equals else os.environ.get(name, "")
    command = plan.command
    if not command:  # what the console's own shell would be, but in the right place
        shell = user.environment.get("SHELL", SHELL)
        command = (shell if root and os.access(root + shell, os.X_OK) else SHELL,)
    return plan.replace(
        command=command,
        exports=tuple(exports),
        cwd=args.cwd or (guest_path(_cwd(), exports) or "/" if root else "/"),
        env=tuple(f"{name}={value}" for name, value in environment.items()),
        user=user.ids,
    )


def with_modules(plan: Plan, release: str, modules: str, say: Say) -> Plan:
    """`plan` with the guest kernel's modules (the directory `modules`) at /lib/modules/RELEASE of its root."""
    from unikvm.images.depmod import indexed

    root = next((export for export in plan.exports if export.tag == ROOT_TAG), None)
    where = f"/lib/modules/{release}"
    if root is not None and os.path.realpath(root.path + where) != os.path.realpath(modules):
        modules = indexed(modules, release, say)
    if root is None or not modules or os.path.realpath(root.path + where) == os.path.realpath(modules):
        return plan
    inside = guest_path(os.path.realpath(modules), [root])
    if inside:
        return plan.replace(binds=((inside, where),))
    return plan.replace(exports=(*plan.exports, Export(MODULES_TAG, os.path.realpath(modules), where, True)))


def guest_path(path: str, exports: list[Export]) -> str:
    """Where the guest finds the machine's `path`, or an empty string where it does not."""
    best = ""
    longest = -1
    for export in exports:
        base = export.path.rstrip("/")
        if (path == export.path or path.startswith(f"{base}/")) and len(base) > longest:
            longest = len(base)
            best = os.path.normpath(f"{export.where}/{path[len(base) :]}")
    return f"/{best.lstrip('/')}" if best else ""


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _directory(option: str, path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise CannotRun(f"{option} {path}: no such directory")
    return real


def _rwdir(number: int, text: str, root: str | None) -> Export:
    """DIR, or GUEST=HOST."""
    where, equals, path = text.partition("=")
    if not equals or os.path.isdir(text):
        where, path = "", text
    real = _directory("--rwdir", path)
    if real == "/":
        raise CannotRun(f"--rwdir {text}: not all of the machine", hint="--root / has it, copy-on-write")
    if not where:
        where = guest_path(os.path.abspath(path), [Export(ROOT_TAG, root, "/", True)] if root else [])
    where = where or os.path.abspath(path)
    if not where.startswith("/") or os.path.normpath(where) == "/":
        raise CannotRun(f"--rwdir {text}: {where!r} is no place for it in the guest", hint="GUEST=HOST with a path")
    return Export(f"rw{number}", real, os.path.normpath(where), False)


def _user(text: str | None, root: str | None) -> User:
    """NAME, UID or UID:GID, looked up in the guest's root."""
    entries = _table(root, "passwd", 7) if root else []
    wanted = text or "0"
    uid, colon, gid = wanted.partition(":")
    entry = next((entry for entry in entries if (entry[2] if uid.isdigit() else entry[0]) == uid), None)
    if entry is None and not uid.isdigit():
        hint = "a number needs no /etc/passwd" if root else "without --root there are numbers only"
        raise CannotRun(f"--user {text}: no such user in {root or 'the guest'}", hint=hint)
    if colon and not gid.isdigit():
        raise CannotRun(f"--user {text}: {gid!r} is no number of a group", hint="UID:GID")
    environment = {}
    groups = [gid or (entry[3] if entry else uid)]
    if entry is not None:
        name = entry[0]
        uid = entry[2]
        if not colon:
            groups += [group[2] for group in _table(root, "group", 4) if name in group[3].split(",")]
        environment = {"HOME": entry[5], "USER": name, "LOGNAME": name, "SHELL": entry[6] or "/bin/sh"}
    ids = f"{uid}:{','.join(dict.fromkeys(groups))}"
    return User(ids if text else "", environment)


def _table(root: str | None, name: str, fields: int) -> list[list[str]]:
    """The lines of the root's /etc/`name` that have as many fields as they should."""
    try:
        with open(f"{root or ''}/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []
    return [line for line in lines if len(line) == fields]
