"""Intervals that respect clusters: pictures of one stamp are not independent, so stamps are resampled, not pictures.

Percentile bootstrap of a ratio of sums (a mean is the ratio with denominators 1) or of any statistic of sums,
vectorised over resamples, seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 4000
CHUNK = 500


@dataclass(frozen=True)
class Interval:
    """A value with its interval; NaN bounds where there is one cluster or none."""

    value: float
    low: float
    high: float
    num_clusters: int


def cluster_sums(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Sums of (N, ...) values within each of C clusters, in order of first appearance: (C, ...)."""
    index: dict[Hashable, int] = {}
    which = np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)
    sums = np.zeros((len(index), *values.shape[1:]))
    np.add.at(sums, which, values)
    return sums


def ratio(
    above: Sequence[float] | np.ndarray,
    below: Sequence[float] | np.ndarray | None,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """sum(above) / sum(below) with its percentile interval over resampled clusters; `below` None means a mean."""
    above = np.asarray(above, dtype=np.float64)
    below = np.ones_like(above) if below is None else np.asarray(below, dtype=np.float64)
    if not len(above) == len(below) == len(clusters):
        raise ValueError(f"lengths differ: {len(above)} above, {len(below)} below, {len(clusters)} clusters")
    parts = np.stack([above, below], axis=1)
    return of_sums(parts, lambda sums: divided(sums[..., 0], sums[..., 1]), clusters, level, num_resamples, seed)


def mean(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], **options: float) -> Interval:
    return ratio(values, None, clusters, **options)  # type: ignore[arg-type]


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    **options: float,
) -> Interval:
    """mean(first - second) where both were measured on the same examples in the same order."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return ratio(difference, None, clusters, **options)  # type: ignore[arg-type]


def macro_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
    clusters: Sequence[Hashable],
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of the groups' means, each group counting the same; a resample averages over the groups that it drew."""
    values = np.asarray(values, dtype=np.float64)
    index = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    parts = np.zeros((len(values), 2 * len(index)))
    which = np.array([index[group] for group in groups], dtype=np.int64)
    parts[np.arange(len(values)), which] = values
    parts[np.arange(len(values)), which + len(index)] = 1

    def statistic(sums: np.ndarray) -> np.ndarray:
        return np.nanmean(divided(sums[..., : len(index)], sums[..., len(index) :]), axis=-1)

    return of_sums(parts, statistic, clusters, level, num_resamples, seed)


def of_sums(
    parts: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Hashable],
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic of the sums of (N, M) parts, such as a corpus score: `statistic` maps (..., M) to (...)."""
    if not len(parts) == len(clusters):
        raise ValueError(f"lengths differ: {len(parts)} examples, {len(clusters)} clusters")
    if len(parts) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    return percentile(cluster_sums(parts, clusters), statistic, level, num_resamples, seed)


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def percentile(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    level: float,
    num_resamples: int,
    seed: int,
) -> Interval:
    """`sums` (C, M): what each cluster adds to the sums that the statistic is made of."""
    num_clusters = len(sums)
    value = float(statistic(sums.sum(0)))
    if num_clusters < 2:
        return Interval(value, np.nan, np.nan, num_clusters)
    generator = np.random.default_rng(seed)
    shares = np.full(num_clusters, 1 / num_clusters)
    values = []
    for start in range(0, num_resamples, CHUNK):
        counts = generator.multinomial(num_clusters, shares, size=min(CHUNK, num_resamples - start))
        values.append(statistic(counts @ sums))
    drawn = np.concatenate(values)
    if np.isnan(drawn).all():
        return Interval(value, np.nan, np.nan, num_clusters)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), num_clusters)
