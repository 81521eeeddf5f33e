"""Skipping against its price: what is retained of a task metric over the FLOPs that a plan leaves (paper, fig. 11).

Each point is a run or an evaluation under a plan; the baseline is the same checkpoint without one (a run of the set,
else the result.json of the checkpoint's own run). Training under the plan and evaluating an unskipped adapter under it
are drawn apart: the companion paper's recovery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from ima.report.drawing import Figure, legend
from ima.report.load import Run, load_run, number
from ima.report.style import MARKERS, Theme

METRICS = tuple(
    f"{track}/{score}" for score in ("noun_accuracy", "accuracy", "cider_d") for track in ("T0", "test", "val")
)


@dataclasses.dataclass(frozen=True)
class Point:
    """left, retained: shares of the unskipped model's FLOPs (prompt) and metric."""

    run: str
    group: str
    what: str
    left: float
    value: float
    retained: float
    seconds: float | None


def plan_of(run: Run) -> dict[str, Any]:
    plan = run.result["facts"].get("plan")
    return plan if isinstance(plan, dict) and plan.get("interventions") else {}


def baseline(run: Run, runs: Sequence[Run], metric: str) -> float | None:
    """The metric of the same adapter, or of the same training, without a plan."""
    source = run.result["facts"].get("evaluated")
    for other in runs:
        if not plan_of(other) and other.result["facts"].get("evaluated") == source:
            return other.metrics.get(metric)
    if source is None:
        return None
    folder = next((path for path in Path(source).parents if (path / "result.json").is_file()), None)
    return load_run(folder, details=False).metrics.get(metric) if folder is not None else None


def described(plan: dict[str, Any]) -> tuple[str, str]:
    """(what the colour tells: part and roles; what the point is: blocks, ratio)."""
    groups, words = [], []
    for each in plan["interventions"]:
        roles = "+".join(each.get("roles") or []) or "all"
        groups.append(f"{each.get('part', each.get('kind', '?'))}, {roles}")
        listed = each.get("listed")
        where = f"blocks {listed}" if listed else f"from {each.get('start')} every {each.get('every', 1)}"
        words.append(f"{where}, ratio {each.get('ratio', 1)}")
    return "; ".join(groups), "; ".join(words)


def points_of(runs: Sequence[Run], metric: str) -> list[Point]:
    found = []
    for run in runs:
        plan = plan_of(run)
        value = run.metrics.get(metric)
        left = number((plan.get("flops") or {}).get("prefill_left")) if plan else None
        whole = baseline(run, runs, metric) if plan else None
        if value is None or left is None or not whole:
            continue
        group, what = described(plan)
        trained = "" if run.result["facts"].get("evaluated") else "trained under it: "
        timing = run.result["facts"].get("plan_seconds") or {}
        found.append(Point(run.name, trained + group, what, left, value, value / whole, number(timing.get("left"))))
    return found


def skip_tradeoff(runs: Sequence[Run]) -> Figure:
    title, name = "Retained performance over computation left", "skip_tradeoff"
    metric = next((m for m in METRICS if len(points_of(runs, m)) > 1), None)
    if metric is None:
        return Figure(name, title, "", missing="needs two runs or evaluations under a skip plan, and their baseline")
    points = points_of(runs, metric)
    caption = (
        f"{metric.replace('/', ', ').replace('_', ' ')} in % of the same adapter's without a plan, over the FLOPs of"
        " the prompt's pass that the plan leaves; the dotted lines are the unskipped model."
    )

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        ax.axhline(100, color=theme["muted"], linestyle=":", linewidth=1)
        ax.axvline(100, color=theme["muted"], linestyle=":", linewidth=1)
        for index, group in enumerate(sorted({point.group for point in points})):
            chosen = [point for point in points if point.group == group]
            ax.scatter(
                [100 * point.left for point in chosen], [100 * point.retained for point in chosen], s=38,
                color=theme.category(index), marker=MARKERS[index % len(MARKERS)], label=group, alpha=0.85,
            )  # fmt: skip
        ax.set(xlabel="FLOPs left (% of the unskipped prompt)", ylabel="performance retained (%)")
        ax.set_ylim(bottom=0)
        legend(ax, columns=2)

    header = [field.name for field in dataclasses.fields(Point)]
    return Figure(name, title, caption, draw, (header, [list(dataclasses.astuple(point)) for point in points]))
