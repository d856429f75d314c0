# SPDX-License-Identifier: GPL-2.0-only
"""Options of `unikvm run` that have a language of their own. Each module is imported for runs that ask for it."""
