# SPDX-License-Identifier: GPL-2.0-only
"""The guest's agent from outside: commands, terminals and files, over a byte stream to it (Documentation/vsock.md)."""
