"""Fair timing on a noisy machine: all candidates take turns, ratios are formed within a round, medians are quoted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from ima.core.progress import progress

Ratio = tuple[float, float, float]


def rounds(candidates: Mapping[str, Callable[[], object]], num_rounds: int, what: str) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one uncounted round. The order alternates between rounds. A
    candidate that returns a number has timed itself."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    with progress((num_rounds + 1) * len(names), what, "run") as advance:
        for index in range(num_rounds + 1):
            for name in names if index % 2 else reversed(names):
                start = time.perf_counter()
                own = candidates[name]()
                if index:
                    seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
                advance(1)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> Ratio:
    """Median and quartiles of over / under within rounds."""
    values = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
