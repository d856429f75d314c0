# SPDX-License-Identifier: GPL-2.0-only
"""The one error type of the user half, and the outcomes a run can end with.

Every error that a user can meet is a `UnikvmError`: one line that says what is wrong, a hint that says what to do,
and the outcome (exit status) it stands for. Only `cli` turns it into an exit.
"""

from __future__ import annotations

# Exit statuses of `unikvm run`. They work as they are under `git bisect run`: 125 skips, nothing is over 127.
MAX_CMD_STATUS = 119  # the guest command's own status; larger ones are reported as this one
PANIC = 120  # guest panic or oops
HANG = 121  # no progress, the watchdog ended it
KVM_ERROR = 122  # internal error, failed entry, a KVM ioctl refused
VMM_ERROR = 123  # a defect of the user half
TIMEOUT = 124  # the time the user allowed is over
CANNOT_RUN = 125  # no KVM, bad image, build or bootstrap failed

OUTCOME_NAMES = {
    PANIC: "guest-panic",
    HANG: "guest-hang",
    KVM_ERROR: "kvm-error",
    VMM_ERROR: "vmm-error",
    TIMEOUT: "time-out",
    CANNOT_RUN: "cannot-run",
}


class UnikvmError(Exception):
    """An error a user meets: `message` is one line, `hint` says what to do, `outcome` is the exit status."""

    outcome = VMM_ERROR

    def __init__(self, message: str, *, hint: str = "", outcome: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if outcome is not None:
            self.outcome = outcome

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class CannotRun(UnikvmError):
    """The run could not start: what it needs is missing or malformed."""

    outcome = CANNOT_RUN


class KvmError(UnikvmError):
    """KVM refused an ioctl or could not enter the guest."""

    outcome = KVM_ERROR


class GuestFault(UnikvmError):
    """The guest handed over something invalid: an address outside RAM, a malformed descriptor chain.

    Never leaves the device that met it: the device answers the guest as its specification says.
    """
