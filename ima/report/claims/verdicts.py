"""From effects of several seeds to a verdict.

Seeds of one setting share their test examples, so an interval over seeds alone is too narrow, and so is one over
examples alone. The wider of the two is used. Verdicts are corrected for the number of cells of a claim (Holm).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["holds", "contradicted", "none", "too wide", "few seeds", "no interval"]
NUM_SEEDS = 3  # fewer are never a verdict
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Effect:
    """One seed's effect, in the direction of the paper, with its 95 % interval over clusters of examples (NaN: none).
    num_seeds: of the runs behind it, where one effect is computed from several; p: of a test of its own."""

    value: float
    low: float
    high: float
    seed: int
    runs: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    num_seeds: int = 1
    p: float = math.nan

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Combined:
    """Over the seeds: mean, 95 % interval, two-sided p of no effect beyond `bar`."""

    value: float
    low: float
    high: float
    p: float
    num_seeds: int


def combine(effects: Sequence[Effect], bar: float = 0.0) -> Combined:
    """The mean over seeds; its interval is the wider of Student's t over the seeds (three or more) and the seeds' mean
    interval over examples, which is that of their mean where they share the examples entirely."""
    from scipy.stats import norm, t

    values = [effect.value for effect in effects]
    mean, num = math.fsum(values) / len(values), len(values)
    within = math.fsum(effect.half for effect in effects) / num
    half, p = within, math.nan if math.isnan(within) else float(mean == bar)
    if within > 0:
        p = float(2 * norm.sf(abs(mean - bar) / (within / norm.ppf((1 + LEVEL) / 2))))
    if num >= NUM_SEEDS:
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1) / num)
        over_seeds = float(t.ppf((1 + LEVEL) / 2, num - 1)) * error
        if not within >= over_seeds:  # also where no interval over examples is known
            half = over_seeds
            p = float(2 * t.sf(abs(mean - bar) / error, num - 1)) if error else 0.0
    if num == 1:
        (only,) = effects
        return Combined(mean, only.low, only.high, only.p if math.isfinite(only.p) else p, only.num_seeds)
    return Combined(mean, mean - half, mean + half, p, num)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p of every test of a family, in the given order; NaN stays NaN and is no member."""
    known = sorted((p, index) for index, p in enumerate(ps) if math.isfinite(p))
    out, highest = [math.nan] * len(ps), 0.0
    for place, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        out[index] = highest
    return out


def judge(
    found: Combined, adjusted_p: float, smallest: float | None, bar: float = 0.0, absent: bool = False
) -> Verdict:
    """Effects are in the paper's direction. bar: what an effect must be beyond; smallest: an effect within this of the
    bar is none. absent: the claim is that there is none: one within `smallest` holds, one beyond contradicts."""
    if found.num_seeds < NUM_SEEDS:
        return "few seeds"
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return "no interval"
    inside = smallest is not None and bar - smallest < found.low and found.high < bar + smallest
    beyond = adjusted_p <= 1 - LEVEL and (found.low > bar or found.high < bar)
    if absent:
        return "holds" if inside else "contradicted" if beyond else "too wide"
    if inside:
        return "none"
    if beyond:
        return "holds" if found.low > bar else "contradicted"
    return "too wide"
