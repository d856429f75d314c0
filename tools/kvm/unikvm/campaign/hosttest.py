# SPDX-License-Identifier: GPL-2.0-only
"""A test's command in a host VM, with the end of what it says on either stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unikvm.hostvm.host import Exit, HostVm


class Output:
    """The last `kept` bytes of what a test says."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._bytes = bytearray()

    def take(self, data: bytes) -> None:
        """More of it."""
        self._bytes += data
        del self._bytes[: max(0, len(self._bytes) - 2 * self._kept)]

    @property
    def text(self) -> str:
        """As text; what is no UTF-8 is replaced."""
        return bytes(self._bytes[-self._kept :]).decode("utf-8", "replace")


def execute(
    host: HostVm,
    command: Sequence[str],
    output: Output,
    *,
    cwd: str,
    env: Mapping[str, str],
    timeout: float | None,
) -> Exit:
    """Run `command`, found on the PATH of `env` (127 where it is not there). HostError where the host VM ends."""
    return host.exec(
        ["/usr/bin/env", "--", *command], cwd=cwd, env=env, stdout=output.take, stderr=output.take, timeout=timeout
    )
