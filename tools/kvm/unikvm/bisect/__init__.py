# SPDX-License-Identifier: GPL-2.0-only
"""`unikvm bisect`: which commit, which half, which host kernel. Documentation/bisect.md tells how it works."""
