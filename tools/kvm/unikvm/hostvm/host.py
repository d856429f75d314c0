# SPDX-License-Identifier: GPL-2.0-only
"""HostVm: start, run commands, end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from unikvm.errors import CannotRun, UnikvmError
from unikvm.hostvm import image, snapshot
from unikvm.hostvm.launch import Qemu, choose_accel, kernel_cmdline, machine_args, new_ram, start_qemu
from unikvm.hostvm.session import Session, Sink
from unikvm.hostvm.share import Mount, NineP, Virtiofs, choose_server, mounts
from unikvm.hostvm.snapshot import Snapshot, SnapshotError
from unikvm.hostvm.watchdog import HostError, Watchdog
from unikvm.sys.process import find_program
from unikvm.sys.qmp import QmpError
from unikvm.wire import PORT_RELAY, PROTOCOL, exec_line, raw

if TYPE_CHECKING:
    from unikvm.hostvm.config import HostConfig

# Seconds, times HostConfig.patience. A boot takes 6 to 10 under TCG with a processor to itself.
_BOOT_SECONDS = 90.0
_BOOT_SECONDS_ICOUNT = 180.0
_RESUME_SECONDS = 15.0
_REQUEST_SECONDS = 45.0
_MONITOR_SECONDS = 15.0
_ENVIRONMENT = {"HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
_T = TypeVar("_T")


class Exit:
    """How a command in the host VM ended.

    `status` is its exit status, `signal` the signal that ended it (or 0); `stdout` and `stderr` are what was not sent
    elsewhere; `timed_out`: the time was over and it was ended for that.
    """

    __slots__ = ("signal", "status", "stderr", "stdout", "timed_out")

    def __init__(self, status: int, signal: int, stdout: bytes, stderr: bytes, timed_out: bool) -> None:
        self.status = status
        self.signal = signal
        self.stdout = stdout
        self.stderr = stderr
        self.timed_out = timed_out

    @property
    def shell_status(self) -> int:
        """The status as a shell gives it: 128 + N after signal N."""
        return 128 + self.signal if self.signal else self.status

    def __repr__(self) -> str:
        return f"Exit(status={self.status}, signal={self.signal}, stdout={self.stdout!r}, stderr={self.stderr!r})"


def _sink(where: int | Sink | None, into: bytearray) -> Sink:
    if where is None:
        return into.extend
    if not isinstance(where, int):
        return where
    fd = where

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # a terminal that another process made non-blocking
                time.sleep(0.01)

    return write


class HostVm:
    """One host VM. A context manager; not thread safe, and used on a thread that outlives it (see process.spawn).

    `progress(phase)` is called at the beginning of each phase, `say(line)` with what the user must know: a slower way
    taken, a retry. `phases` has the seconds of each phase in order; `accel` how the processor is had;
    `from_snapshot` whether a kept host was resumed; `retried` whether this is the second attempt.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        progress: Callable[[str], object] | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.config = config
        self.accel = choose_accel(config)
        self.phases: list[tuple[str, float]] = []
        self.from_snapshot = False
        self.retried = False
        self._progress = progress or (lambda _phase: None)
        self._say = say or (lambda _line: None)
        self._phase_name = ""
        self._phase_began = 0.0
        self._mounted = False
        self._server: Virtiofs | NineP | None = None
        self._qemu: Qemu | None = None
        self._watchdog: Watchdog | None = None
        self._session: Session | None = None

    # Life

    def __enter__(self) -> HostVm:
        self.start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Bring the host up, with its root and shares mounted.

        A host that hangs or dies on the way is tried once more. HostError where it panics or fails again, CannotRun
        where something is missing.
        """
        if self._qemu is not None:
            raise UnikvmError("the host VM is running already")
        try:
            self._bring_up()
        except HostError as error:
            self.close()
            if self.retried or error.kind == "host-panic":
                raise
            self._say(f"{error.message}; trying once more")
            self.retried = True
            self._guarded(self._bring_up)
        except BaseException:
            self.close()
            raise

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the host VM and everything that belongs to it, whatever its state."""
        self._phase("")
        self._mounted = False
        self._drop_qemu()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _phase(self, name: str) -> None:
        now = time.monotonic()
        if self._phase_name:
            self.phases.append((self._phase_name, now - self._phase_began))
        self._phase_name, self._phase_began = name, now
        if name:
            self._progress(name)

    # Up

    def _bring_up(self) -> None:
        self._phase("starting the file server")
        wanted = mounts(self.config.shares)
        self._server, line = choose_server(wanted)
        if line:
            self._say(line)
        names = image.module_names(self.config, self.accel.vendor, self._server.modules)
        root = snapshot.cache_dir()
        kept = None
        if self.config.snapshot and not self.config.icount:
            kept = Snapshot(os.path.join(root, self._snapshot_key(names)))
        self.from_snapshot = kept is not None and kept.exists() and self._resume(kept)
        if not self.from_snapshot:
            self._boot(names)
            if kept is not None:
                self._keep(root, os.path.basename(kept.path))
        self._plug(wanted)
        self._phase("")

    def _snapshot_key(self, names: Sequence[str]) -> str:
        config, server = self.config, self._server
        assert server is not None
        parts = [PROTOCOL, self.accel.kind, str(config.nested_paging), kernel_cmdline(config, self.accel), *names]
        parts += [*machine_args(config, self.accel), *server.qemu_args()]
        parts += map(snapshot.identity, (config.kernel.image, config.kernel.modules, config.init, image.__file__))
        parts += [config.kernel.release, snapshot.identity(find_program(config.qemu) or config.qemu)]
        if self.accel.kind == "kvm":  # -cpu host: another processor or kernel is another machine
            parts.append(" ".join(os.uname()))
        return snapshot.key(parts)

    def _launch(self, ram: int, initrd: int | None, *, incoming: bool) -> Qemu:
        server = self._server
        assert server is not None
        qemu = start_qemu(self.config, self.accel, server.qemu_args(), ram=ram, initrd=initrd, incoming=incoming)
        self._qemu = qemu
        self._watchdog = Watchdog(qemu, self.config.patience)
        try:
            qemu.qmp.connect(_MONITOR_SECONDS * self.config.patience)
        except QmpError as error:
            self._watchdog.closed(f"its monitor ({error.message})")
        self._session = Session(qemu.ports, self._watchdog, [qemu.process.pidfd, *server.pidfds], self._server_ended)
        return qemu

    def _drop_qemu(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._qemu is not None:
            self._qemu.close()
            self._qemu = None

    def _resume(self, kept: Snapshot) -> bool:
        """Go on from a kept host; False (it is removed, and the user told) where that fails."""
        self._phase("resuming the kept host")
        ram = new_ram(self.config.memory)
        try:
            try:
                kept.load_ram(ram)
            except SnapshotError:
                os.close(ram)
                raise
            kept.resume(self._launch(ram, None, incoming=True))
            session = self._talk()
            session.send("ping", "resumed")
            session.answer(_RESUME_SECONDS * self.config.patience, "resuming")
        except (SnapshotError, QmpError, HostError) as error:
            self._drop_qemu()
            self._refuse_dead_server()
            kept.discard()
            self._say(f"the kept host cannot be resumed ({error.message}); booting")
            return False
        return True

    def _boot(self, names: list[str]) -> None:
        self._phase(f"booting {self.config.kernel.release} ({self.accel.kind})")
        initrd = image.build(self.config, names)
        try:
            self._launch(new_ram(self.config.memory), initrd, incoming=False)
        finally:
            os.close(initrd)
        seconds = _BOOT_SECONDS_ICOUNT if self.config.icount else _BOOT_SECONDS
        words = self._talk().answer(seconds * self.config.patience, "booting")
        if words != ["ready", PROTOCOL]:
            raise CannotRun(
                f"the init of the host VM speaks another protocol: {' '.join(words)}",
                hint="`make build` builds it anew",
            )

    def _keep(self, root: str, name: str) -> None:
        assert self._qemu is not None
        self._phase("keeping the booted host")
        try:
            snapshot.save(self._qemu, root, name)
        except (SnapshotError, QmpError) as error:
            self._watch().check()
            self._say(f"the booted host is not kept: {error.message}")

    def _plug(self, wanted: Sequence[Mount]) -> None:
        """The clock, randomness, the root and the shares."""
        self._phase("mounting the root")
        qemu, server, session = self._qemu, self._server, self._talk()
        assert qemu is not None
        assert server is not None
        try:
            server.plug(qemu)
        except QmpError as error:
            self._watch().check()
            raise CannotRun(f"the root cannot be shared with the host VM: {error.message}") from error
        now = time.time_ns()
        session.send("time", str(now // 10**9), str(now % 10**9))
        session.send("seed", os.urandom(32).hex())
        for mount in wanted:
            if mount.readonly:
                session.send("root", server.fstype, mount.tag, server.options, *server.root_flags)
            else:
                session.send("share", server.fstype, mount.tag, mount.path, server.options)
        for _ in range(2 + len(wanted)):
            session.answer(_REQUEST_SECONDS * self.config.patience, "mounting")
        self._mounted = True

    def _server_ended(self) -> None:
        """A child ended: QEMU's end is the watchdog's, a file server's is ours."""
        self._watch().check()
        if not self._mounted:
            self._refuse_dead_server()
        why = self._server.failure() if self._server is not None else ""
        if why:
            raise HostError("host-died", why, self._watch().tail())

    def _refuse_dead_server(self) -> None:
        """A file server that ends before it was used cannot do what it was asked for; another try would not help."""
        why = self._server.failure() if self._server is not None else ""
        if why:
            raise CannotRun(why)

    def _talk(self) -> Session:
        if self._session is None:
            raise UnikvmError("the host VM is not running")
        return self._session

    def _watch(self) -> Watchdog:
        if self._watchdog is None or self._qemu is None:
            raise UnikvmError("the host VM is not running")
        return self._watchdog

    # Use

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        stdin: int | bytes | None = None,
        stdout: int | Sink | None = None,
        stderr: int | Sink | None = None,
        timeout: float | None = None,
    ) -> Exit:
        """Run a command to its end, byte-exact on three pipes.

        `stdin` is a descriptor, bytes, or None for an empty one; `stdout` and `stderr` are descriptors, callables, or
        None to have the bytes in the result. `timeout` in seconds: SIGTERM then, SIGKILL 5 s later. CannotRun where it
        cannot be started, HostError where the host ends before it.
        """
        request = exec_line(argv, cwd=cwd, env={**_ENVIRONMENT, **(env or {})})
        return self._run(request, stdin, stdout, stderr, None, timeout)

    def run_interactive(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
        stdin: int = 0,
        stdout: int | Sink = 1,
        typed: Callable[[bytes], bytes] | None = None,
    ) -> Exit:
        """Run a command on a pty of the host VM. `typed` filters what is read from `stdin` (an escape key, say; what it
        raises ends the relay); `resize` tells of a new window size. The terminal's own mode is the caller's."""
        request = exec_line(argv, cwd=cwd, env={**_ENVIRONMENT, **(env or {})}, tty="pty", size=size)
        return self._run(request, stdin, stdout, None, typed, None)

    def _run(
        self,
        request: bytes,
        stdin: int | bytes | None,
        stdout: int | Sink | None,
        stderr: int | Sink | None,
        typed: Callable[[bytes], bytes] | None,
        timeout: float | None,
    ) -> Exit:
        out, err = bytearray(), bytearray()
        command, timed_out = self._talk().run(
            request, stdin, _sink(stdout, out), _sink(stderr, err), typed=typed, timeout=timeout
        )
        if command.error:
            raise CannotRun(f"in the host VM: {command.error}")
        return Exit(command.status, command.signal, bytes(out), bytes(err), timed_out)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now. May be called from a signal handler."""
        if self._session is not None:
            self._session.resize(columns, rows)

    @property
    def relay(self) -> int:
        """Our end of the port that is the running guest's: a stream to whoever opens it in the host VM."""
        if self._qemu is None:
            raise UnikvmError("the host VM is not running")
        return self._qemu.ports[PORT_RELAY].fileno()

    def insmod(self, path: str, parameters: str = "") -> None:
        """Insert a module; `path` as the host sees it. UnikvmError with the kernel's reason where it refuses."""
        self._request("insmod", path, parameters)

    def read(self, path: str) -> bytes:
        """The content of a file of the host (1 MiB at most): a run's result, a trace."""
        return raw(self._request("read", path)[1])

    def _request(self, *words: str) -> list[str]:
        session = self._talk()
        session.send(*words)
        return session.answer(_REQUEST_SECONDS * self.config.patience, words[0])

    def console_tail(self, size: int = 8192) -> str:
        """The end of the host kernel's console, or an empty string where no host runs."""
        return self._watchdog.tail(size) if self._watchdog is not None and self._qemu is not None else ""


def with_host(
    config: HostConfig,
    action: Callable[[HostVm], _T],
    *,
    progress: Callable[[str], object] | None = None,
    say: Callable[[str], object] | None = None,
) -> _T:
    """Do `action` on a new host VM, once more where the host hung or died below it.

    One retry in all, starting included, and none after a panic (a finding, not an accident) or once output of a
    command has been handed over (it would come twice).
    """
    host = HostVm(config, progress=progress, say=say)
    try:
        with host:
            return action(host)
    except HostError as error:
        if host.retried or error.kind == "host-panic" or error.output_seen:
            raise
        if say is not None:
            say(f"{error.message}; trying once more")
    host = HostVm(config, progress=progress, say=say)
    host.retried = True
    with host:
        return action(host)
