# SPDX-License-Identifier: GPL-2.0-only
"""How a run ends: one typed event each, with the outcome (exit status) it stands for."""

from __future__ import annotations

from unikvm.errors import (
    HANG,
    KVM_ERROR,
    MAX_CMD_STATUS,
    OUTCOME_NAMES,
    PANIC,
    TIMEOUT,
    VMM_ERROR,
    UnikvmError,
)


class Event:
    """The end of a run. `outcome` is the exit status, `detail` one line for people."""

    outcome = 0
    detail = ""

    @property
    def name(self) -> str:
        """The outcome's name in results and last lines: `exit` for a status of the guest's own."""
        return OUTCOME_NAMES.get(self.outcome, "exit")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class _Status(Event):
    """An end with a status that the guest chose."""

    what = ""

    def __init__(self, status: int) -> None:
        self.status = status
        self.outcome = min(status, MAX_CMD_STATUS)
        self.detail = f"{self.what} {status}"


class CommandExit(_Status):
    """The command in the guest ended with `status` (128 + n when signal n killed it)."""

    what = "the command ended with status"


class DebugExit(_Status):
    """The guest wrote `status` to isa-debug-exit (port 0xf4)."""

    what = "isa-debug-exit wrote"


class PowerOff(Event):
    """The guest switched itself off (ACPI S5)."""

    detail = "the guest powered off"


class Reset(Event):
    """The guest asked for a reset: `source` names the register it used."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.detail = f"the guest reset itself ({source})"


class Stopped(Event):
    """The user ended the run."""

    detail = "stopped by the user"


class Panic(Event):
    """The guest panicked or oopsed."""

    outcome = PANIC

    def __init__(self, text: str) -> None:
        self.text = text
        self.detail = text


class TripleFault(Panic):
    """A vCPU shut down: no handler for a fault in a fault handler."""

    def __init__(self, vcpu: int, rip: int) -> None:
        super().__init__(f"triple fault on vCPU {vcpu} at rip {rip:#x}")
        self.vcpu = vcpu
        self.rip = rip


class Hang(Event):
    """No progress for as long as the watchdog allows."""

    outcome = HANG

    def __init__(self, text: str) -> None:
        self.detail = text


class Timeout(Event):
    """The time that the user allowed is over."""

    outcome = TIMEOUT

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.detail = f"time-out after {seconds:g} s"


class KvmFailure(Event):
    """KVM could not run a vCPU: internal error, failed entry, or a refused ioctl."""

    outcome = KVM_ERROR

    def __init__(self, text: str) -> None:
        self.detail = text


class VmmFailure(Event):
    """A defect of the user half: `error` is what was raised."""

    outcome = VMM_ERROR

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.detail = f"{type(error).__name__}: {error}"
        if isinstance(error, UnikvmError):
            self.outcome = error.outcome
            self.detail = str(error)
