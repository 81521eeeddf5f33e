"""Runs as points of two metrics, and how the two are related: the numbers behind `proxies`.

Checkpoints of one training are no independent points: they are resampled together, and no p is given. Runs that
measured the same twice count once. Controls have random weights or look at nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ima.core.metric_names import IMA_MEAN, VAL_LOSS, error_of, limits_of
from ima.report.run import Run

Array = np.ndarray
SCORES = ("noun_accuracy", "accuracy", "f1", "chair_i", "cider_d", "cider")
TRACKS = ("T0", "T1", "test", "val")
LOSS = VAL_LOSS
GAP = "ima_gap_read/mean"
COLUMNS = (IMA_MEAN, "ima/mean/nosink", GAP)
NUM_DRAWS, NUM_PERMUTATIONS, MANY = 2000, 5000, 200  # a tenth of the draws where there are many points


@dataclasses.dataclass(frozen=True)
class Point:
    """group: points of one training are of one group. bars: half width of x's interval, limits of y's."""

    run: str
    x: float
    y: float
    group: str
    control: bool
    bars: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Relation:
    """kind: spearman or pearson. p is NaN where points are not independent, all is NaN with fewer than three points or
    where a side does not vary."""

    kind: str
    value: float
    low: float
    high: float
    p: float
    n: int


def is_control(run: Run) -> bool:
    """Whether the encoder looks at nothing or has random weights, or the LLM has."""
    config = run.result["config"]
    choices = config.get("choices") or {}
    return any(
        str(choices.get(part) or "").startswith(("random", "noise")) for part in ("encoder", "llm")
    ) or untrained(config.get("encoder"))


def untrained(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    own = str(node.get("_target_") or "").endswith("NoiseEncoder") or node.get("pretrained") is False
    return own or any(untrained(inner) for inner in node.values())


def training_of(run: Run) -> str:
    """The folder of the training whose adapter was measured."""
    source = Path(str(run.result["facts"].get("evaluated") or run.folder)).resolve()
    if source.suffix == ".safetensors":
        source = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    return str(source)


def points_of(runs: Sequence[Run], x: str, y: str) -> list[Point]:
    found: dict[tuple[float, float], Point] = {}
    for run in runs:
        a, b = run.metrics.get(x), run.metrics.get(y)
        if a is None or b is None:
            continue
        low, high = (run.metrics.get(limit) for limit in limits_of(y))
        bars = (1.96 * (run.metrics.get(error_of(x)) or 0.0), b if low is None else low, b if high is None else high)
        found.setdefault((a, b), Point(run.name, a, b, training_of(run), is_control(run), bars))
    return list(found.values())


def targets(runs: Sequence[Run], x: str = COLUMNS[0]) -> list[str]:
    """What at least three runs have beside `x`: task metrics (CIDEr only where nothing else is scored), then the loss,
    which still differs where all runs fail a task or all solve it."""
    have = [run for run in runs if run.metrics.get(x) is not None]
    names = [f"{track}/{score}" for score, track in itertools.product(SCORES, TRACKS)]
    found = [name for name in [*names, LOSS] if sum(run.metrics.get(name) is not None for run in have) > 2]
    scored = [name for name in found if "cider" not in name]
    return scored if set(scored) - {LOSS} else list(dict.fromkeys(found[:1] + scored))


def relations(points: Sequence[Point], seed: int = 0) -> list[Relation]:
    """Spearman's and Pearson's correlation."""
    x, y = np.array([point.x for point in points]), np.array([point.y for point in points])
    if len(points) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return [Relation(kind, math.nan, math.nan, math.nan, math.nan, len(points)) for kind in ("spearman", "pearson")]
    groups = [point.group for point in points]
    share = 10 if len(points) > MANY else 1
    drawn = resampled(groups, NUM_DRAWS // share, np.random.default_rng(seed))
    independent = len(set(groups)) == len(groups)
    out = []
    for kind, change in (("spearman", ranked), ("pearson", np.asarray)):
        value = float(correlations(change(x), change(y)))
        values = np.concatenate([np.atleast_1d(correlations(change(x[some]), change(y[some]))) for some in drawn])
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, (0.025, 0.975)) if len(finite) >= len(values) // 2 else (math.nan, math.nan)
        p = permutation_p(change(x), change(y), value, NUM_PERMUTATIONS // share, seed) if independent else math.nan
        out.append(Relation(kind, value, float(low), float(high), p, len(points)))
    return out


def resampled(groups: Sequence[str], num: int, generator: np.random.Generator) -> list[Array]:
    """Indices of `num` bootstrap samples, a row each: one array where each point is a group, else an array each."""
    names = sorted(set(groups))
    if len(names) == len(groups):
        return [generator.integers(0, len(groups), (num, len(groups)))]
    members = [np.flatnonzero([group == name for group in groups]) for name in names]
    drawn = generator.integers(0, len(names), (num, len(names)))
    return [np.concatenate([members[index] for index in row]) for row in drawn]


def ranked(values: Array) -> Array:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1), dtype=np.float64)


def correlations(x: Array, y: Array) -> Array:
    """Pearson's, over the last axis; NaN where a side does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 1e-300, (x * y).sum(-1) / scale, math.nan))


def permutation_p(x: Array, y: Array, value: float, num: int, seed: int) -> float:
    """Two-sided, of no relation at all; exact with up to seven points."""
    if len(x) <= 7:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        return float((np.abs(correlations(x, y[orders])) >= abs(value) - 1e-12).mean())
    generator = np.random.default_rng(seed)
    orders = np.argsort(generator.random((num, len(x))), axis=1)
    return float((1 + (np.abs(correlations(x, y[orders])) >= abs(value) - 1e-12).sum()) / (1 + num))
