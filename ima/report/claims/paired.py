"""Effects from two runs on the same test examples (skips, masks, recovery), and from relations over many runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from ima.core.errors import UserError
from ima.report.claims.measures import Found, Measure, Setting, interval_effect, seed_of, setting_of, trained
from ima.report.correlation import correlate
from ima.report.plans import plan_of, skips_of
from ima.report.relations import training_of
from ima.report.run import Run
from ima.runs.compare import compare

# -- evaluations under interventions --------------------------------------------------------------------------------


def paired(run: Run, base: Run, more: str) -> list[Found]:
    """Difference of the task score on the same examples, on the first track that both have."""
    try:
        tracks = compare(run.folder, base.folder)["tracks"]
    except UserError:
        return []
    if not tracks:
        return []
    track, told = next(iter(tracks.items()))
    difference = told["difference"]
    effect = interval_effect(difference["value"], difference["low"], difference["high"], run, base)
    return [Found(setting_of(base, f"{more}, {track}"), dataclasses.replace(effect, seed=seed_of(base)))]


def base_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The same adapter without a plan."""
    source = training_of(run)
    return next((each for each in trained(runs) if training_of(each) == source), None)


def under_skips(part: str) -> Measure:
    """Score under a plan that skips `part` for perceptual tokens alone, minus the score without one."""

    def measure(runs: Sequence[Run]) -> list[Found]:
        out = []
        for run in runs:
            kinds = (skips_of(run).get("interventions") or []) if run.status == "ok" else []
            if len(kinds) != 1 or kinds[0].get("part") != part or [*(kinds[0].get("roles") or [])] != ["percept"]:
                continue
            base = base_of(run, runs)
            if base is not None and run.result["facts"].get("evaluated"):
                left = (plan_of(run).get("flops") or {}).get("prefill_left") or math.nan
                where = f"from block {kinds[0].get('start')} every {kinds[0].get('every', 1)}"
                out += paired(run, base, f"{where}, {100 * left:.0f} % of FLOPs")
        return out

    return measure


def masks_of(run: Run) -> list[dict[str, Any]]:
    return [each for each in plan_of(run).get("interventions") or [] if each.get("kind") == "mask"]


def subnet_against(method: str) -> Measure:
    """Score under the subnet minus that under a mask of another method with the same sparsity, of the same adapter."""

    def measure(runs: Sequence[Run]) -> list[Found]:
        masked = [(run, masks_of(run)[0]) for run in runs if run.status == "ok" and len(masks_of(run)) == 1]
        out = []
        for run, mask in masked:
            if mask.get("method") != "subnet":
                continue
            for other, theirs in masked:
                same = training_of(run) == training_of(other) and theirs.get("method") == method
                if same and abs(theirs["sparsity"] - mask["sparsity"]) < 0.005:
                    out += paired(run, other, f"{100 * mask['sparsity']:.0f} % sparse")
                    break
        return out

    return measure


def recovered(runs: Sequence[Run]) -> list[Found]:
    """Trained under a plan minus trained without it and evaluated under it: same seed, data and plan."""
    out = []
    for run in runs:
        if run.status != "ok" or run.result["facts"].get("evaluated") or not plan_of(run):
            continue
        for other in runs:
            facts = other.result["facts"]
            same = facts.get("evaluated") and plan_of(other).get("interventions") == plan_of(run)["interventions"]
            if same and all(facts.get(name) == run.result["facts"].get(name) for name in ("llm", "source", "task")):
                out += paired(run, other, "trained under the plan")
                break
    return out


# -- relations over runs --------------------------------------------------------------------------------------------


def relation(x: str, y_of: Callable[[Run], str | None], sign: float = 1.0) -> Measure:
    """Spearman's rho over the trainings of one LLM, medium and task, eight or more; controls are among them."""

    def measure(runs: Sequence[Run]) -> list[Found]:
        groups: dict[Setting, dict[str, tuple[float, float, Run]]] = {}
        for run in runs:
            name = y_of(run)
            a, b = run.metrics.get(x), run.metrics.get(name) if name else None
            if run.status == "ok" and not plan_of(run) and a is not None and b is not None:
                facts = run.result["facts"]
                key = Setting(str(facts.get("llm")), str(facts.get("modality")), f"{facts.get('task')}: {x} and {name}")
                groups.setdefault(key, {}).setdefault(training_of(run), (a, b, run))
        out = []
        for setting, points in groups.items():
            if len(points) >= 8:
                found = correlate([a for a, _, _ in points.values()], [b for _, b, _ in points.values()])[1]
                limits = sorted((sign * found.low, sign * found.high))
                own = [run for _, _, run in points.values()]
                effect = interval_effect(sign * found.value, limits[0], limits[1], *own)
                effect = dataclasses.replace(effect, num_seeds=len({seed_of(run) for run in own}), p=found.p)
                setting = dataclasses.replace(setting, setup=f"{setting.setup}, {len(points)} trainings")
                out.append(Found(setting, effect))
        return out

    return measure


def headline_of(run: Run) -> str | None:
    """The task's own metric on the first track that has it."""
    name = run.result["facts"].get("headline")
    tracks = [metric for metric in run.metrics if metric.endswith(f"/{name}")]
    return next((metric for metric in tracks if metric.startswith(("T0/", "test/", "val/"))), None) if name else None


def shared_weights(runs: Sequence[Run]) -> list[Found]:
    """Overlap of percept and text masks of one task, corrected for chance, from comparisons of masks (no interval)."""
    out = []
    for run in runs:
        facts = run.result["facts"]
        masks: dict[str, dict[str, Any]] = facts.get("masks") or {} if facts.get("kind") == "masks" else {}
        for name, value in run.metrics.items():
            score, *pair = name.split("/")
            both = [masks[each] for each in pair if each in masks]
            if score != "mask_iou_corrected" or value is None or len(both) != 2:
                continue
            a, b = both
            if {a.get("roles"), b.get("roles")} == {"percept", "text"} and a.get("tasks") == b.get("tasks"):
                effect = interval_effect(value, math.nan, math.nan, run)
                effect = dataclasses.replace(effect, seed=int(a.get("seed") or 0))
                words = ", ".join(str(task.get("source")) for task in a.get("tasks") or [])
                out.append(Found(Setting(str(a.get("llm")), "percept and text", f"{words}, {a.get('asked')}"), effect))
    return out
