# SPDX-License-Identifier: GPL-2.0-only
"""A dask cluster of two workers with folders of their own, as a process of its own: it leaves helpers behind in whoever
starts it.

usage: cluster.py FOLDER
Prints the scheduler's address and the workers' process numbers; ends with its standard input.
"""

from __future__ import annotations

import sys

from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, local_directory=sys.argv[1], dashboard_address=None
    ) as cluster:
        pids = [worker.process.pid for worker in cluster.workers.values()]
        print(cluster.scheduler_address, *pids, flush=True)
        sys.stdin.read()
