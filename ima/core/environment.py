"""What a process of ours is set to before torch is imported: libraries that stay quiet, threads that wait a
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

import contextlib
import ctypes
import io
import os
import platform
import stat
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# torch, huggingface_hub and wandb read these once. A value that is set already wins.
# W&B reports errors and timings to its makers even when it is offline, unless told not to.
VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_ERROR_REPORTING": "false",
}
SPIN = {"GOMP_SPINCOUNT": "10000"}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SETTINGS = {TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30), MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 32 * 2**20)}


class UnbreakableText(io.TextIOBase):
    """A stream of text into a pipe. Once nobody reads there any longer (`train.py | head`), what is written is lost,
    and whoever writes goes on: a run is worth more than its messages."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self.survived():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.survived():
            self.stream.flush()

    @contextlib.contextmanager
    def survived(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # also for what the stream still holds
            os.close(nowhere)

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def survive_closed_pipes() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if (
            stream is getattr(sys, f"__{name}__")
            and stream is not None
            and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
        ):
            setattr(sys, name, UnbreakableText(stream))


def prepare() -> None:
    survive_closed_pipes()
    spin = {} if "OMP_WAIT_POLICY" in os.environ else SPIN
    for name, value in (VARIABLES | spin).items():
        os.environ.setdefault(name, value)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, (name, num_bytes) in SETTINGS.items():
            if name not in os.environ:
                libc.mallopt(parameter, num_bytes)
