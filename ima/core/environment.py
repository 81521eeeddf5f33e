"""What a process of ours is set to before torch is imported: libraries that stay offline and quiet, threads that wait a
moment before they sleep, memory that is kept.

Of threads: a step of a small model is thousands of operations, after each of which the other threads wait for the next.
To put them to sleep and wake them (PASSIVE) takes longer than most of these; to let them wait actively for as long as
OpenMP does by default stalls everything on cores that others use, too. A short active wait is in between. Where more
threads run than there are cores, as in two trainings at once, OMP_WAIT_POLICY=PASSIVE is faster by far.

Of memory: by default glibc hands what was freed back to the system again and again, and every new page is then faulted
in and zeroed anew; a pass of a language model frees and takes tens of megabytes per batch. Blocks of up to 32 MiB (the
most that glibc allows) come from the heap here, whose free end is kept up to 1 GiB.
"""

from __future__ import annotations

import ctypes
import os
import platform

# torch, huggingface_hub and wandb read these once. A value that is set already wins.
# W&B reports errors and timings to its makers even when it is offline, unless told not to.
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_ERROR_REPORTING": "false",
}
SPIN = {"GOMP_SPINCOUNT": "10000"}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SETTINGS = {TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30), MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 32 * 2**20)}


def prepare() -> None:
    spin = {} if "OMP_WAIT_POLICY" in os.environ else SPIN
    for name, value in (VARIABLES | spin).items():
        os.environ.setdefault(name, value)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, (name, num_bytes) in SETTINGS.items():
            if name not in os.environ:
                libc.mallopt(parameter, num_bytes)
