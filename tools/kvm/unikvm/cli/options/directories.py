# SPDX-License-Identifier: GPL-2.0-only
"""Directories of this machine in the guest (--root, --rwdir), and as whom, where and with what the command runs there.

Imported for runs that ask for any of it.
"""

from __future__ import annotations

import os

from unikvm.cli.options.values import add_environment
from unikvm.cli.plan import Export, Plan, say
from unikvm.errors import CannotRun
from unikvm.vhost import virtiofsd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unikvm.cli.plan import Say
    from unikvm.virtio.device import VirtioDevice

ROOT_TAG = "root"
MODULES_TAG = "modules"
# How a directory gets into the guest, and what the guest needs for it beside the modules of every guest.
GUEST_MODULES = ("virtiofs", "overlay")
GUEST_MODULES_9P = ("9p", "9pnet_virtio", "overlay")  # where there is no virtiofsd
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
    image = bool(args.root) and os.path.isfile(args.root)
    if image:
        from unikvm.cli.options.memory import with_root

        plan = with_root(plan, args.root)
    root = _directory("--root", args.root) if args.root and not image else None
    exports = [Export(ROOT_TAG, root, "/", True)] if root else []
    for number, text in enumerate(args.rwdir):
        exports.append(_rwdir(number, text, root))
    user = _user(args.user, root)
    environment = {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
    environment.update(user.environment)
    add_environment(environment, args.env)
    command = plan.command
    if not command:  # what the console's own shell would be, but in the right place
        shell = user.environment.get("SHELL", SHELL)
        command = (shell if root and os.access(root + shell, os.X_OK) else SHELL,)
    fstype = "virtiofs"
    if exports and not virtiofsd.find():
        fstype = "9p"
        if not plan.quiet:
            say("no virtiofsd here: directories go by 9p, which is slower")
    return plan.replace(
        command=command,
        exports=tuple(exports),
        fstype=fstype,
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


def guest_modules(plan: Plan, release: str, modules: str) -> tuple[str, ...]:
    """What the guest's initramfs needs for `plan`. CannotRun where its kernel has nothing of the kind."""
    if plan.fstype == "virtiofs":
        return GUEST_MODULES
    from unikvm.images.modules import resolve

    try:
        resolve(modules, release, GUEST_MODULES_9P)
    except CannotRun as error:
        hint = "`make setup` installs virtiofsd; linux-image-amd64 has 9p"
        raise CannotRun(f"without virtiofsd a directory needs 9p: {error.message}", hint=hint) from None
    return GUEST_MODULES_9P


def mounts(plan: Plan) -> list[tuple[str, ...]]:
    """What init is asked for before the command: the root first."""
    steps: list[tuple[str, ...]] = []
    if plan.root_type:
        from unikvm.cli.options.memory import root_request

        steps.append(root_request(plan))
    for export in plan.exports:
        if plan.fstype == "9p":
            from unikvm.vhost import ninep

            options = ninep.options(readonly=export.readonly)
        else:
            options = "ro" if export.readonly and export.tag != ROOT_TAG else ""
        if export.tag == ROOT_TAG:
            steps.append(("root", plan.fstype, export.tag, options, *virtiofsd.mount_flags()))
            steps += [("bind", what, where) for what, where in plan.binds]
        else:
            steps.append(("share", plan.fstype, export.tag, export.where, options))
    return steps


def devices(plan: Plan, tell: Callable[[str], object]) -> tuple[VirtioDevice, ...]:
    """A file server for each directory, started at once, and its device."""
    if plan.fstype == "9p":
        from unikvm.vhost import ninep
        from unikvm.virtio.p9 import P9

        return tuple(P9(it.tag, ninep.serve(it.path, readonly=it.readonly), say=tell) for it in plan.exports)
    from unikvm.virtio.fs import Fs

    binary = virtiofsd.find()
    if not binary:
        raise CannotRun("this host has no virtiofsd, and where the run was planned there was one")
    return tuple(Fs(it.tag, virtiofsd.serve(binary, it.path, readonly=it.readonly), say=tell) for it in plan.exports)


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
