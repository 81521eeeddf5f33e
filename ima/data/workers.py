"""How many loader processes the machine's shared memory can feed.

Worker processes hand tensors over through /dev/shm. Where that is small (64 MB in many containers) a full one kills a
worker or blocks it for ever, so fewer are started then, with one line.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path

SHARED = Path("/dev/shm")
BYTES_OF_A_WORKER = 256 * 2**20  # a few prepared batches


def num_fed(num_workers: int) -> int:
    """`num_workers`, or as many as free shared memory lets run."""
    if num_workers < 1 or not SHARED.is_dir():
        return num_workers
    free = shutil.disk_usage(SHARED).free
    fed = min(num_workers, free // BYTES_OF_A_WORKER)
    if fed < num_workers:
        warn(num_workers, fed, free >> 20)
    return fed


@functools.cache
def warn(asked: int, fed: int, megabytes: int) -> None:
    """Once for the same numbers."""
    print(
        f"warning: loader.num_workers={asked}: {SHARED} has {megabytes} MB free, so {fed} loader processes are used; "
        "give the machine more shared memory (docker --shm-size) for more",
        file=sys.stderr,
    )
