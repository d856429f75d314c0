# SPDX-License-Identifier: GPL-2.0-only
"""Running guests from other processes: names, requests and answers, streams. Documentation/control.md."""
