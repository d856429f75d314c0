# SPDX-License-Identifier: GPL-2.0-only
"""Child processes that cannot outlive their parent, and the name spaces that virtiofsd needs.

Own code instead of `subprocess`: its `preexec_fn` would do for the first half, at 15 ms of imports before QEMU starts.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence

from unikvm.errors import CannotRun

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SETGROUPS = 116  # x86-64
_CLONE_NEWNS = 0x0002_0000
_CLONE_NEWUSER = 0x1000_0000
_MS_REC_PRIVATE = 0x4000 | 0x4_0000
_MS_REC_BIND = 0x4000 | 0x1000
_SYS_MOUNT_SETATTR = 442  # Linux 5.12, every architecture
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100
_MOUNT_ATTR_RDONLY = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def find_program(name: str) -> str:
    """The path of a program on PATH, or an empty string; a name with a slash is one."""
    if "/" in name:
        return name
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        if directory and os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    return ""


class Process:
    """A child; `pidfd` becomes readable when it ends."""

    def __init__(self, name: str, pid: int, log: int) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.log = log  # memfd: its standard output and error
        self._status: int | None = None

    def poll(self) -> int | None:
        """None while it runs, then its exit status (negative: the signal that ended it)."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, seconds: float) -> int | None:
        """`poll` after at most `seconds`."""
        if self._status is None:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            poller.poll(max(0, int(seconds * 1000)))
        return self.poll()

    def kill(self) -> None:
        """End it at once and reap it. SIGKILL also ends a stopped process."""
        if self._status is None:
            # Through the pidfd: the number cannot have been given to another process.
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait(10)

    def end(self, seconds: float, *, alone: bool = True) -> None:
        """Have it end in good order, within `seconds`. `alone`: by itself; it is asked to after a moment."""
        if self.wait(min(seconds, 0.5) if alone else 0) is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            self.wait(seconds)

    def log_text(self) -> str:
        """The end of what it wrote."""
        size = os.fstat(self.log).st_size
        return os.pread(self.log, 4096, max(0, size - 4096)).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Kill, reap and release the descriptors."""
        self.kill()
        os.close(self.pidfd)
        os.close(self.log)


def spawn(
    argv: Sequence[str],
    *,
    fds: Sequence[int] = (),
    prepare: Callable[[], None] | None = None,
) -> Process:
    """Start `argv` with the descriptors `fds` under their numbers; the kernel kills it when this *thread* ends
    (PR_SET_PDEATHSIG): call it on a thread that lives as long as the child is wanted.

    `prepare` runs in the child before exec. CannotRun where that or exec fails.
    """
    name = os.path.basename(argv[0])
    parent = os.getpid()
    log = os.memfd_create(name, os.MFD_CLOEXEC)
    report_read, report_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _become(argv, fds, prepare, parent, log)
        except OSError as error:
            os.write(report_write, str(error).encode())
        finally:
            os._exit(127)
    os.close(report_write)
    failure = b""
    while chunk := os.read(report_read, 4096):  # ends when exec closes the other end
        failure += chunk
    os.close(report_read)
    if failure:
        os.waitpid(pid, 0)
        os.close(log)
        raise CannotRun(f"cannot start {argv[0]}: {failure.decode()}")
    return Process(name, pid, log)


def _become(argv: Sequence[str], fds: Sequence[int], prepare: Callable[[], None] | None, parent: int, log: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(127)
    os.setsid()  # Ctrl-C is for the front end, which ends its children itself
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for fd in fds:
        os.set_inheritable(fd, True)
    if prepare is not None:
        prepare()
        # Credentials that changed clear the death signal.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
    os.execvp(argv[0], list(argv))


def end_with_parent() -> None:
    """Make the kernel kill this process, and with it what it spawned, when the thread that started it ends."""
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent == 1 or os.getppid() != parent:
        os._exit(127)


def _check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def become_namespace_root() -> None:
    """In a child that is not root: root of a user namespace of its own, which maps the user to 0.

    virtiofsd needs it for its sandbox. The user's files are then root's in the host VM; OSError where the machine
    forbids user namespaces.
    """
    if os.getuid() == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWUSER), "a user namespace")
    for path, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)
    _ignore_setgroups()


def _ignore_setgroups() -> None:
    """Make setgroups succeed without doing anything, by a seccomp filter.

    A user namespace with one user in it refuses setgroups, which QEMU's virtiofsd does not forgive; the groups it wants
    to drop are the user's own.
    """
    program = struct.pack(
        "HBBI" * 4,
        *(0x20, 0, 0, 0),  # load seccomp_data.nr
        *(0x15, 0, 1, _SYS_SETGROUPS),  # equal: next, else skip one
        *(0x06, 0, 0, 0x0005_0000),  # SECCOMP_RET_ERRNO, 0
        *(0x06, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
    )
    filters = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("H6xQ", 4, ctypes.addressof(filters)), 16)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, fprog), "a seccomp filter")


def readonly_tree(source: str, where: str) -> None:
    """In a child: the tree of mounts at `source` appears at `where` as well, read-only, for this process and its
    children alone. `where` may be `source` itself.

    So the machine's files are safe from a kernel under development, whatever it sends to the file server. OSError where
    the kernel is older than 5.12 or forbids it.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None), "private mounts")
    target = os.fsencode(where)
    _check(_libc.mount(os.fsencode(source), target, None, ctypes.c_ulong(_MS_REC_BIND), None), "a bind mount")
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, fd
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        target,
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(int(result), "read-only mounts")


def deadline(seconds: float) -> Callable[[], float]:
    """How many seconds are left, from now (0 at the end)."""
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic())
