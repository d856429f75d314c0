# SPDX-License-Identifier: GPL-2.0-only
"""A file server for guests where there is no virtiofsd: 9P2000.L over a socket, a process of its own."""
