# SPDX-License-Identifier: GPL-2.0-only
"""Initial values of the model-specific registers whose reset value is not what firmware leaves to a
kernel."""

from __future__ import annotations

IA32_MISC_ENABLE = 0x1A0
IA32_MTRR_DEF_TYPE = 0x2FF

_MISC_ENABLE_FAST_STRING = 1 << 0
_MTRR_ENABLE = 1 << 11
_MTRR_WRITE_BACK = 6

# With MTRRs off Linux 6.1 switches PAT off too. One default type and no ranges: there is nothing for it to
# clean up.
INITIAL = (
    (IA32_MISC_ENABLE, _MISC_ENABLE_FAST_STRING),
    (IA32_MTRR_DEF_TYPE, _MTRR_ENABLE | _MTRR_WRITE_BACK),
)


def initial() -> tuple[tuple[int, int], ...]:
    """(index, value) pairs for KVM_SET_MSRS of each vCPU (Intel SDM vol. 4; vol. 3A §12.11 for the MTRRs)."""
    return INITIAL
