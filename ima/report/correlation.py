"""Is an alignment score a proxy of a task metric? Correlations over a set of runs or over the epochs of runs.

`python -m ima correlate DIR DIR... --x ima/mean --y T0/noun_accuracy` takes both columns from each run's
`result.json`; `--over epochs` takes metrics of the same names from the rows of each epoch instead, `--over examples`
from `examples.jsonl` and `predictions.jsonl` of evaluations, with the AUROC where y is yes or no. Pearson, Spearman and
Kendall's tau-b, each with a bootstrap 95 % interval over the points, the number of points and the p of a permutation
test. Which runs are compared decides what it means: raw IMA is comparable within one LLM only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ima.core.errors import UserError, nearest
from ima.core.files import json_lines
from ima.core.metric_names import BLOCK_OUTPUTS, TRACKS_WITHOUT_MEDIA, metric_name
from ima.core.types import Row
from ima.report.curves import by_entry
from ima.runs.record import read_record
from ima.runs.results import read_rows

Array = np.ndarray
NUM_DRAWS = 2000
NUM_PERMUTATIONS = 5000
FEW = 100  # points of which all pairs are compared at once


@dataclasses.dataclass(frozen=True)
class Correlation:
    """low, high: bootstrap 95 % interval. p: two-sided, of no relation at all; exact where there are at most seven
    points. NaN where a side does not vary or there are fewer than three points."""

    name: str
    value: float
    low: float
    high: float
    p: float
    n: int


@dataclasses.dataclass(frozen=True)
class Point:
    label: str
    x: float
    y: float


def pearson(x: Array, y: Array) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-300 else math.nan


def spearman(x: Array, y: Array) -> float:
    return pearson(ranks(x), ranks(y))


def ranks(x: Array) -> Array:
    """Of equal values the mean rank. All pairs are compared while there are few: thousands of draws call this."""
    if len(x) > FEW:
        from scipy.stats import rankdata

        return np.asarray(rankdata(x))
    return np.asarray(((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1) + 1) / 2)


def kendall(x: Array, y: Array) -> float:
    """tau-b."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    if len(x) > FEW:
        from scipy.stats import kendalltau

        return float(kendalltau(x, y).statistic)
    over, above = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    return float((over * above).sum() / math.sqrt(float(np.abs(over).sum()) * float(np.abs(above).sum())))


KINDS: dict[str, Callable[[Array, Array], float]] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def correlate(x: Sequence[float], y: Sequence[float], seed: int = 0) -> list[Correlation]:
    """All three, over the points where both are finite."""
    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)])
    n = len(pairs)
    if n < 3 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return [Correlation(name, math.nan, math.nan, math.nan, math.nan, n) for name in KINDS]
    result = []
    for name, of in KINDS.items():
        value = of(pairs[:, 0], pairs[:, 1])
        low, high = interval(of, pairs, seed)
        result.append(Correlation(name, value, low, high, permutation_p(of, pairs, value, seed), n))
    return result


def interval(of: Callable[[Array, Array], float], pairs: Array, seed: int) -> tuple[float, float]:
    """Percentiles over resampled points; draws in which a side does not vary say nothing and are left out."""
    generator = np.random.default_rng(seed)
    draws = (pairs[generator.integers(0, len(pairs), len(pairs))] for _ in range(NUM_DRAWS))
    values = [of(drawn[:, 0], drawn[:, 1]) for drawn in draws]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < NUM_DRAWS // 2:
        return math.nan, math.nan
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)


def permutation_p(of: Callable[[Array, Array], float], pairs: Array, value: float, seed: int) -> float:
    x, y = pairs[:, 0], pairs[:, 1]
    if len(x) <= 7:
        found = [of(x, np.array(order)) for order in itertools.permutations(y)]
        return sum(abs(each) >= abs(value) - 1e-12 for each in found) / len(found)
    generator = np.random.default_rng(seed)
    hits = sum(abs(of(x, generator.permutation(y))) >= abs(value) - 1e-12 for _ in range(NUM_PERMUTATIONS))
    return (1 + hits) / (1 + NUM_PERMUTATIONS)


def detect(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation:
    """AUROC of x for y = 1 against y = 0, over the points where both are known; p is that of the rank-sum test."""
    from scipy.stats import mannwhitneyu

    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)])
    pairs = pairs.reshape(-1, 2)

    def of(score: Array, positive: Array) -> float:
        return auroc(score.tolist(), (positive > 0.5).tolist())

    value = of(pairs[:, 0], pairs[:, 1])
    if not math.isfinite(value):
        return Correlation("auroc", value, math.nan, math.nan, math.nan, len(pairs))
    yes = pairs[:, 1] > 0.5
    p = float(mannwhitneyu(pairs[yes, 0], pairs[~yes, 0]).pvalue)
    return Correlation("auroc", value, *interval(of, pairs, seed), p, len(pairs))


def auroc(score: Sequence[float], positive: Sequence[bool]) -> float:
    """How often a positive example's score is above a negative one's, ties half; NaN without both kinds."""
    yes = np.array(positive, dtype=bool)
    high, low = int(yes.sum()), int((~yes).sum())
    if not high or not low:
        return math.nan
    return float(ranks(np.array(score, dtype=float))[yes].sum() - high * (high + 1) / 2) / (high * low)


# -- columns of runs -------------------------------------------------------------------------------------------------


def points_of(over: str, folders: Sequence[Path], x: str, y: str) -> tuple[list[Point], list[str]]:
    """Points of all folders that have both columns, and a line for each other one, as `outputs/*` names sweeps, masks
    and pages beside runs. Raises UserError where none has both, or one is not there."""
    points: list[Point] = []
    left_out: list[str] = []
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no folder; name runs or evaluations")
        if not folder.is_dir():
            left_out.append(f"{folder}: not found in it, a file: {x} or {y}")
            continue
        try:
            points += OVER[over](folder, x, y)
        except UserError as error:
            left_out.append(str(error))
    if not points and left_out:
        raise UserError(max(left_out, key=lambda line: "not found" not in line))
    return points, left_out


def run_points(folder: Path, x: str, y: str) -> list[Point]:
    """A point, from `metrics` of the run's result. Raises UserError naming what it lacks."""
    metrics = read_record(folder).metrics
    for column in (x, y):
        if column not in metrics:
            raise UserError(f"{folder}: no metric {column!r}; {nearest(column, metrics)}")
    return [Point(folder.name, number(metrics[x]), number(metrics[y]))]


def epoch_points(folder: Path, x: str, y: str) -> list[Point]:
    """A point per epoch that has both."""
    path = folder / "rows.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: not found; is {folder} a run folder (outputs/<run>)?")
    columns: dict[str, dict[int, float]] = {x: {}, y: {}}
    rows = [row for row in read_rows(path) if row["epoch"] is not None]
    mixture = "" not in by_entry(rows)
    for column, found in columns.items():
        found |= {row["epoch"]: number(row["value"]) for row in rows if is_column(row, column, mixture)}
        if not found:
            names = dict.fromkeys(name for row in rows if (name := metric_name(row, mixture)))
            raise UserError(f"{path}: no rows of {column!r}; {nearest(column, names)}")
    shared = sorted(columns[x].keys() & columns[y].keys())
    return [Point(f"{folder.name}@{epoch}", columns[x][epoch], columns[y][epoch]) for epoch in shared]


def is_column(row: dict[str, Any], column: str, mixture: bool = False) -> bool:
    """Whether the row is of the metric `column`: its name in result.json, or score/variant or track/score as rows spell
    them (ima/nosink, T0/accuracy_low)."""
    if metric_name(row, mixture) == column:
        return True
    left, _, right = column.rpartition("/")
    if row["track"] is not None:
        return (row["track"], row["score"]) == (left, right)
    if row["layer_a"] is not None or row["site"] not in BLOCK_OUTPUTS or row["role_b"] not in (None, "T"):
        return False
    score, variant = (left, right) if left else (right, "raw")
    return row["score"] == score and (row["variant"] or "raw") == variant


def example_points(folder: Path, x: str, y: str) -> list[Point]:
    """A point per example that was both looked into and predicted: `alignment.split` must be the track."""
    aligned = {line["id"]: line for line in lines_of(folder / "examples.jsonl", "id")}
    said = lines_of(folder / "predictions.jsonl", "id", "track")
    predicted = [line for line in said if line["track"] not in TRACKS_WITHOUT_MEDIA]
    shared = [line for line in predicted if line["id"] in aligned]
    if not shared:
        raise UserError(f"{folder}: no example was both aligned and predicted; evaluate with alignment.split=TRACK")
    for column, line in ((x, aligned[shared[0]["id"]]), (y, shared[0])):
        if column not in line:
            raise UserError(f"{folder}: examples have no {column!r}; {nearest(column, line)}")
    return [Point(line["id"], number(aligned[line["id"]].get(x)), number(line.get(y))) for line in shared]


def lines_of(path: Path, *keys: str) -> list[dict[str, Any]]:
    """keys: texts that each line has."""
    lines = []
    try:
        for place, line in json_lines(path):
            for key in keys:
                if not isinstance(line.get(key), str):
                    raise UserError(f"{path}:{place}: {key!r} is no text; delete the line or the file")
            lines.append(line)
        return lines
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; evaluate with alignment=full alignment.split=TRACK") from error


def number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def correlation_rows(found: Sequence[Correlation], x: str, y: str, run: str) -> Iterator[Row]:
    """A row per correlation and its limits; the note names the columns."""
    for each in found:
        note = f"{x} ~ {y}, p = {each.p:.3g}"
        values = {"": each.value, "_low": each.low, "_high": each.high, "_p": each.p}
        for suffix, value in values.items():
            yield Row(run=run, score=f"proxy_{each.name}{suffix}", value=value, n=each.n, note=note)


OVER: dict[str, Callable[[Path, str, str], list[Point]]] = {
    "runs": run_points,
    "epochs": epoch_points,
    "examples": example_points,
}
