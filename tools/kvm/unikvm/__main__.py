# SPDX-License-Identifier: GPL-2.0-only
"""`python3 -I -S tools/kvm/unikvm/__main__.py`: what scripts/unikvm runs, and `python3 -m unikvm`.

Without `site` Python starts a third faster; what `make setup` installed is put on the path by hand.
"""

import gc
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - who has an older one shall be told
    sys.stderr.write("unikvm: Python 3.11 or newer is needed, and this is {}.{}\n".format(*sys.version_info))
    sys.exit(125)
# Start-up makes many objects and drops few: collecting in between is for nothing.
gc.set_threshold(50_000)
if not __package__:
    import os

    package = os.path.dirname(os.path.abspath(__file__))
    sys.path[:0] = [os.path.dirname(package)]
    site = "lib/python{}.{}/site-packages".format(*sys.version_info)
    build = os.path.join(package, "../../../build")
    sys.path.append(os.path.join(build, "venv", site))
    from unikvm import bundle

    bundle.use(os.path.join(build, bundle.NAME), package)

from unikvm.cli.main import entry  # noqa: E402 - the path is set up above

if __name__ == "__main__":
    entry()
