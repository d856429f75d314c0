# SPDX-License-Identifier: GPL-2.0-only
"""What campaigns (bisect, check) share: commits, builds of both halves, and one run of a test in a host VM."""
