"""Evaluations under plans as points: what a plan leaves of a task metric, and what it costs.

Read from result.json. The baseline is the same checkpoint without a plan: a run of the set, else the checkpoint's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.core.metric_names import VAL_LOSS, limits_of
from ima.report.load import load_run
from ima.report.run import Run, number

TRAINED = "trained under it: "
METRICS = tuple(
    f"{track}/{score}" for score in ("noun_accuracy", "accuracy", "cider_d") for track in ("T0", "test", "val")
)


@dataclasses.dataclass(frozen=True)
class Point:
    """left, retained, seconds: shares of the unskipped model's FLOPs (prompt), metric and time (prompt). blocks: those
    that are skipped, where the plan lists them; loss, whole_loss: on validation, under the plan and without one."""

    run: str
    group: str
    what: str
    left: float
    value: float
    retained: float
    seconds: float | None
    low: float
    high: float
    mark: str = ""
    ratio: float = 1.0
    blocks: tuple[int, ...] = ()
    loss: float | None = None
    whole_loss: float | None = None


def plan_of(run: Run) -> dict[str, Any]:
    plan = run.result["facts"].get("plan")
    return plan if isinstance(plan, dict) and plan.get("interventions") else {}


def skips_of(run: Run) -> dict[str, Any]:
    """The plan, where it is more than masks: these leave every product as large as it was."""
    plan = plan_of(run)
    return plan if any(each.get("kind") != "mask" for each in plan.get("interventions") or []) else {}


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


def mark_of(plan: dict[str, Any]) -> tuple[str, float]:
    """What stands beside a point: the first block and "/k" for every k-th; and the share of tokens, 1 for all."""
    first = plan["interventions"][0]
    blocks = first.get("listed") or [first.get("start")]
    every = first.get("every") or 1
    mark = (
        "" if blocks[0] is None else f"{min(blocks)}" + (f"/{every}" if every > 1 and not first.get("listed") else "")
    )
    return mark, number(first.get("ratio")) or 1.0


def blocks_of(plan: dict[str, Any]) -> tuple[int, ...]:
    """Of a plan of one intervention that says which they are; else none."""
    first, *more = plan["interventions"]
    if more:
        return ()
    if first.get("listed"):
        return tuple(sorted(int(block) for block in first["listed"]))
    if first.get("start") is None or first.get("stop") is None:
        return ()
    return tuple(range(int(first["start"]), int(first["stop"]), int(first.get("every") or 1)))


def points_of(runs: Sequence[Run], metric: str) -> list[Point]:
    found = []
    for run in runs:
        plan = skips_of(run)
        value = run.metrics.get(metric)
        left = number((plan.get("flops") or {}).get("prefill_left")) if plan else None
        whole = baseline(run, runs, metric) if plan else None
        if value is None or left is None or not whole:
            continue
        group, what = described(plan)
        trained = "" if run.result["facts"].get("evaluated") else TRAINED
        low, high = (number(run.metrics.get(limit)) for limit in limits_of(metric))
        timing = run.result["facts"].get("plan_seconds") or {}
        found.append(
            Point(
                run.name, trained + group, what, left, value, value / whole, number(timing.get("left")),
                value if low is None else low, value if high is None else high, *mark_of(plan),
                blocks_of(plan), run.metrics.get(VAL_LOSS), baseline(run, runs, VAL_LOSS),
            )
        )  # fmt: skip
    return found
