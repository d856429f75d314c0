# SPDX-License-Identifier: GPL-2.0-only
"""The file server as a process: `python3 -I -S .../p9/__main__.py FD DIRECTORY`, with a connected socket FD."""

import os
import sys
from _socket import socket as Socket

if not __package__:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:0] = [os.path.dirname(package)]

from unikvm.p9.messages import Malformed
from unikvm.p9.server import Server, serve


def main() -> int:
    import resource

    # Each file that the guest knows is an open descriptor here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0)  # the guest has its own
    try:
        serve(Socket(fileno=int(sys.argv[1])), Server(sys.argv[2]))
    except Malformed as error:
        sys.stderr.write(f"the guest sends {error}\n")
        return 1
    except (ConnectionError, BrokenPipeError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
