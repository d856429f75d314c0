# SPDX-License-Identifier: GPL-2.0-only
"""What `unikvm doctor` says of this machine is what a run will meet."""

from __future__ import annotations

import errno

import pytest

from unikvm.cli.doctor import check_virtiofsd
from unikvm.vhost import virtiofsd


def test_virtiofsd_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no root, but name spaces, which a machine may forbid."""
    monkeypatch.setattr(virtiofsd, "find", lambda: "/bin/true")
    assert check_virtiofsd() == ("virtiofsd", "ok", "/bin/true")

    def forbidden() -> None:
        raise OSError(errno.EPERM, "a user namespace: Operation not permitted")

    monkeypatch.setattr(virtiofsd, "become_namespace_root", forbidden)
    name, state, text = check_virtiofsd()
    assert (name, state) == ("virtiofsd", "slow")
    assert "takes 9p" in text
    assert "a user namespace: Operation not permitted" in text
