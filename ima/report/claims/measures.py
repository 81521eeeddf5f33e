"""Effects of finished runs, in the papers' direction: one function a kind of comparison.

A value with a standard error has the interval of a normal; means over layers take the layers' errors as one, as if they
were perfectly correlated; two values of one run are taken as independent. Both make intervals wider, not narrower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from ima.core.metric_names import limits_of
from ima.report.claims.verdicts import Effect
from ima.report.plans import plan_of
from ima.report.relations import is_control, training_of
from ima.report.run import Run

Z = 1.959964
NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Value:
    """A number with its standard error, NaN where it has none."""

    value: float
    se: float


@dataclasses.dataclass(frozen=True)
class Setting:
    """What effects of different seeds have in common."""

    llm: str
    modality: str
    setup: str


@dataclasses.dataclass(frozen=True)
class Found:
    setting: Setting
    effect: Effect


Measure = Callable[[Sequence[Run]], list[Found]]


# -- values of one run ----------------------------------------------------------------------------------------------


def rows_of(run: Run, score: str, variant: str | None, roles: tuple[str, str | None], first: bool = False) -> list[Any]:
    """Rows of block outputs in validation, of the last epoch measured or of the first, which is before training."""
    found = [
        row
        for row in run.rows
        if row["score"] == score
        and row.get("variant") in (variant, None)
        and (row.get("role_a"), row.get("role_b")) == roles
        and row.get("site") in (None, "resid_post")
        and row.get("split") == "val"
        and row.get("value") is not None
    ]
    if not found:
        return []
    steps = [(row.get("epoch") or 0, row.get("step") or 0) for row in found]
    wanted = min(steps) if first else max(steps)
    if first and wanted[0] != 0:
        return []
    return [row for row, step in zip(found, steps, strict=True) if step == wanted]


def mean_of(rows: Sequence[Any], layers: tuple[float, float] = (0.0, 1.0)) -> Value | None:
    """Mean over rows; layers: the part of the blocks to take, layer 0 is never among them where rows have layers."""
    deepest = max((row["layer_a"] for row in rows if row.get("layer_a") is not None), default=0)
    low, high = max(1, round(layers[0] * deepest)), round(layers[1] * deepest)
    chosen = [row for row in rows if row.get("layer_a") is None or low <= row["layer_a"] <= high]
    if not chosen:
        return None
    errors = [row["se"] for row in chosen if row.get("se") is not None]
    error = math.fsum(errors) / len(errors) if len(errors) == len(chosen) else NAN
    return Value(math.fsum(row["value"] for row in chosen) / len(chosen), error)


def minus(a: Value | None, b: Value | None) -> Value | None:
    return None if a is None or b is None else Value(a.value - b.value, math.hypot(a.se, b.se))


# -- runs -----------------------------------------------------------------------------------------------------------


def setting_of(run: Run, more: str = "") -> Setting:
    facts, choices = run.result["facts"], run.result["config"].get("choices") or {}
    part = {name: choices.get(name) or facts.get(name) or "?" for name in ("encoder", "adapter")}
    setup = f"{facts.get('task')}, {part['encoder']}, {part['adapter']}" + (f", {more}" if more else "")
    return Setting(str(facts.get("llm")), str(facts.get("modality")), setup)


def seed_of(run: Run) -> int:
    return int(run.result["config"].get("seed") or 0)


def commit_of(run: Run) -> str:
    git = run.result.get("git") or {}
    return f"{git.get('commit') or 'unknown'}{'+' if git.get('dirty') else ''}"


def effect_of(value: Value, *runs: Run) -> Effect:
    half = Z * value.se
    return interval_effect(value.value, value.value - half, value.value + half, *runs)


def interval_effect(value: float, low: float, high: float, *runs: Run) -> Effect:
    commits = tuple(dict.fromkeys(commit_of(run) for run in runs))
    return Effect(value, low, high, seed_of(runs[0]), tuple(str(run.folder) for run in runs), commits)


def trained(runs: Sequence[Run]) -> list[Run]:
    """Finished runs and evaluations of encoders and LLMs that are no controls, without a plan."""
    return [run for run in runs if run.status == "ok" and not is_control(run) and not plan_of(run)]


def of_values(value_of: Callable[[Run], Value | None]) -> Measure:
    """A value of every trained run. Of a training and its evaluations the first that has it is taken."""

    def measure(runs: Sequence[Run]) -> list[Found]:
        found: dict[str, Found] = {}
        for run in trained(runs):
            if (value := value_of(run)) is not None:
                found.setdefault(training_of(run), Found(setting_of(run), effect_of(value, run)))
        return list(found.values())

    return measure


def since_untrained(score: str, variant: str, roles: tuple[str, str]) -> Measure:
    """Last epoch minus epoch 0 of the same training."""

    def value_of(run: Run) -> Value | None:
        rows = [rows_of(run, score, variant, roles, first) for first in (False, True)]
        return minus(mean_of(rows[0]), mean_of(rows[1])) if rows[0] is not rows[1] and all(rows) else None

    return of_values(lambda run: None if run.result["facts"].get("evaluated") else value_of(run))


def against_twin(value_of: Callable[[Run], Value | None], part: str) -> Measure:
    """A trained run minus the run of the same seed and everything else whose `part` (encoder or llm) is a control."""

    def measure(runs: Sequence[Run]) -> list[Found]:
        out = []
        trainings = [run for run in runs if run.status == "ok" and not run.result["facts"].get("evaluated")]
        for run in trained(trainings):
            twin = next((each for each in trainings if is_twin(run, each, part)), None)
            if twin is not None and (value := minus(value_of(run), value_of(twin))) is not None:
                out.append(Found(setting_of(run), effect_of(value, run, twin)))
        return out

    return measure


def is_twin(run: Run, other: Run, part: str) -> bool:
    if not is_control(other) or plan_of(other):
        return False
    names = ("llm", "task", "source", "adapter", "encoder")
    facts, theirs = run.result["facts"], other.result["facts"]
    same = all(facts.get(name) == theirs.get(name) for name in names if name != part)
    return same and facts.get(part) != theirs.get(part) and seed_of(run) == seed_of(other)


def metric_value(name: str) -> Callable[[Run], Value | None]:
    """A metric with the standard error that its limits say."""

    def value_of(run: Run) -> Value | None:
        value = run.metrics.get(name)
        low, high = (run.metrics.get(limit) for limit in limits_of(name))
        if value is None:
            return None
        error = run.metrics.get(f"{name}/se")
        if error is None and low is not None and high is not None:
            error = (high - low) / (2 * Z)
        return Value(value, NAN if error is None else error)

    return value_of
