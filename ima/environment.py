"""What a process of ours is set to before torch is imported: libraries that stay offline and quiet, threads that sleep
while they wait, memory that is kept.

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
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_ERROR_REPORTING": "false",
}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SETTINGS = {TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30), MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 32 * 2**20)}


def prepare() -> None:
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, (name, num_bytes) in SETTINGS.items():
            if name not in os.environ:
                libc.mallopt(parameter, num_bytes)
