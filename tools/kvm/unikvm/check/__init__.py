# SPDX-License-Identifier: GPL-2.0-only
"""The gate for a range of commits: builds, tests, KVM's own suites before and after, and the ABI across releases."""
