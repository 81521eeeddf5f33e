"""What the fuzz group shares: its seed, its time, and a list of failures that one test collects before it fails.

tests/conftest.py draws the seed once for all workers; what a test counted is said at the end of the run (`said`).
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ima.core.errors import UserError

SEED = int(os.environ["IMA_FUZZ_SEED"])
# Of all workers together.
SECONDS = float(os.environ.get("IMA_FUZZ_SECONDS") or 300) * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
CASE_SECONDS = 600  # after that a case hangs, also on a busy machine


class Hang(BaseException):
    """Not an Exception: nobody catches it by mistake."""


@contextmanager
def limited(seconds: int = CASE_SECONDS) -> Iterator[None]:
    """Raises Hang inside after that time."""

    def stop(*_: Any) -> None:
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Cases:
    """Runs cases until the time is over and counts how they ended; `failures` say what failed and where."""

    def __init__(self, share: float) -> None:
        """share: of the time of the whole group."""
        self.start = time.monotonic()
        self.end = self.start + SECONDS * share
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def said(self, what: str, number: int) -> str:
        """The line for the end of the run."""
        seconds = time.monotonic() - self.start
        ends = ", ".join(f"{number} {name}" for name, number in self.counts.most_common())
        return f"SEED={SEED} {what}: {number} in {seconds:.0f} s: {ends}"

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """A refusal is one line; everything else that is raised is a failure, counted once for each place."""
        try:
            with limited():
                yield
        except UserError as error:
            self.counts["refused"] += 1
            if "\n" in str(error) or not str(error).strip():
                self.fail(name, f"not one line: {error!r}")
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self.fail(name, f"{type(error).__name__}: {str(error)[:200]} at {place}\n{short(error)}")

    def fail(self, name: str, what: str) -> None:
        self.counts["failed"] += 1
        self.failures.append(f"{name}: {what}")


def short(error: BaseException) -> str:
    """The lines of the traceback inside ima."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/ima/" in frame.filename]
    return "\n".join(
        f"    {frame.filename.rpartition('/ima/')[2]}:{frame.lineno} {frame.line}" for frame in frames[-5:]
    )


def odd_numbers(value: Any) -> list[str]:
    """Where in a nested value a number is NaN or infinite."""
    if isinstance(value, float):
        return [] if math.isfinite(value) else [""]
    if isinstance(value, Mapping):
        return [f"{key}.{place}" for key, item in value.items() for place in odd_numbers(item)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [f"{index}.{place}" for index, item in enumerate(value) for place in odd_numbers(item)]
    return []


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes with it): bits flipped, cut, a piece left out, zeroed or there twice."""
    kind = draw.choice(["bit", "bit", "bits", "cut", "cut", "hole", "zeros", "twice", "bytes"])
    start = draw.randrange(len(data))
    if draw.random() < 0.4:  # headers and first lines are where most is decided
        start = draw.randrange(min(len(data), 200))
    length = 1 + int(len(data[start:]) * draw.random() ** 3)
    out = bytearray(data)
    if kind in ("bit", "bits"):
        for place in [start, *(draw.randrange(len(data)) for _ in range(7))][: 1 if kind == "bit" else 8]:
            out[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del out[start:]
    elif kind == "hole":
        del out[start : start + length]
    elif kind == "zeros":
        out[start : start + length] = bytes(min(length, len(out) - start))
    elif kind == "twice":
        out[start:start] = out[start : start + length]
    else:
        out[start : start + 8] = draw.randbytes(8)
    return f"{kind} at {start}", bytes(out)
