"""Progress bars for whatever lasts longer than a moment: a moving bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, what: str, unit: str = "it") -> Iterator[Callable[..., None]]:
    """Yields `advance(n, note="")`. Silent for work that is over within two seconds."""
    from tqdm import tqdm

    interactive = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        delay=2.0,
        mininterval=0.2 if interactive else 15.0,
        leave=interactive,
        file=sys.stderr,
        dynamic_ncols=interactive,
    ) as bar:

        def advance(n: int, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)

        yield advance


class timed:  # noqa: N801 (reads as a statement)
    """Seconds of a phase, added to a clock."""

    def __init__(self, clock: dict[str, float], phase: str) -> None:
        self.clock, self.phase = clock, phase

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock[self.phase] = self.clock.get(self.phase, 0.0) + time.perf_counter() - self.start
