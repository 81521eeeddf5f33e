"""What a task retains under pruning masks (paper, fig. 12), and the mask of one task on another.

Read from evaluations under a mask, relative to the same adapter without one. Unstructured zeros save no time, and the
captions say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from ima.core.metric_names import limits_of
from ima.report.figures.drawing import Figure, legend
from ima.report.figures.style import NARROW, Theme
from ima.report.plans import METRICS, baseline, plan_of
from ima.report.run import Run, number

NO_TIME = "Unstructured zeros save no time: every product is as large as before."


@dataclasses.dataclass(frozen=True)
class Retained:
    """Of one evaluation under one mask. retained, low, high: shares of the same adapter's metric without it."""

    run: str
    task: str
    mask: str
    method: str
    source: str
    sparsity: float
    metric: str
    value: float
    retained: float
    low: float
    high: float


def mask_of(run: Run) -> dict[str, Any] | None:
    """The facts of the only thing that acts in the run, where that is a mask."""
    acting = plan_of(run).get("interventions") or []
    return acting[0] if len(acting) == 1 and acting[0].get("kind") == "mask" else None


def retained_of(runs: Sequence[Run]) -> list[Retained]:
    out = []
    for run in runs:
        mask = mask_of(run)
        metric = next((name for name in METRICS if run.metrics.get(name) is not None), None)
        if mask is None or metric is None:
            continue
        value, whole = run.metrics[metric], baseline(run, runs, metric)
        if value is None or not whole:
            continue
        low, high = (number(run.metrics.get(limit)) for limit in limits_of(metric))
        tasks = mask.get("tasks") or []
        source = str(tasks[0].get("run")) if len(tasks) == 1 else ""
        task = Path(str(run.result["facts"].get("evaluated") or run.folder)).parent.name
        task = task if task != "checkpoints" else Path(str(run.result["facts"]["evaluated"])).parents[1].name
        limits = [(value if each is None else each) / whole for each in (low, high)]
        out.append(
            Retained(run.name, task, mask_label(mask, task), str(mask.get("method")), source,
                     round(float(mask.get("asked", mask.get("sparsity", math.nan))), 3), metric, value, value / whole,
                     *limits)
        )  # fmt: skip
    return out


def mask_label(mask: dict[str, Any], task: str) -> str:
    """What the mask is to this task: its own, another's, or one for all."""
    method, tasks = str(mask.get("method") or mask.get("name") or "mask"), mask.get("tasks") or []
    words = [method]
    if method == "wanda" and len(tasks) == 1:
        words = ["own Wanda" if tasks[0].get("run") == task else f"Wanda of {tasks[0].get('run')}"]
    if method in ("subnet", "union"):
        words = ["α-SubNet" if method == "subnet" else "union"]
    roles = mask.get("roles")
    words += [str(roles)] if roles and roles != "both" else []
    words += [str(mask["pattern"])] if mask.get("pattern") not in (None, "unstructured") else []
    words += ["sequential"] if mask.get("order") == "sequential" else []
    return ", ".join([*words, *(["per matrix"] if mask.get("matched") == "matrix" else [])])


def retained_figures(runs: Sequence[Run]) -> list[Figure]:
    """Bars by task, one figure per sparsity, and the transfer matrix; nothing where no run has a mask."""
    found = retained_of(runs)
    if not any(map(mask_of, runs)):
        return []
    if not found:
        return [Figure("mask_retained", "Performance under masks", "",
                       missing="needs the metric of the same adapter without a mask")]  # fmt: skip
    ratios = sorted({each.sparsity for each in found})
    return [*(bars([e for e in found if e.sparsity == ratio], ratio) for ratio in ratios), *transfer(found)]


ORDER = ("α-SubNet", "union", "own Wanda", "Wanda", "magnitude", "random")


def place_of(mask: str) -> int:
    """In every figure the same masks come in the same order and colours."""
    return next((place for place, start in enumerate(ORDER) if mask.startswith(start)), len(ORDER))


HEADER = [field.name for field in dataclasses.fields(Retained)]


def bars(found: Sequence[Retained], ratio: float) -> Figure:
    tasks, masks = (list(dict.fromkeys(getattr(each, name) for each in found)) for name in ("task", "mask"))
    own = [mask for mask in masks if not mask.startswith("Wanda of ")]
    # Another task's mask is the transfer matrix's subject.
    masks = sorted(own or masks, key=lambda mask: (place_of(mask), masks.index(mask)))

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, 3.7 + 0.2 * (len(masks) // 2))
        ax = figure.add_subplot()
        ax.axhline(100, color=theme["muted"], linestyle=":", linewidth=1)
        width = 0.8 / len(masks)
        for index, mask in enumerate(masks):
            chosen = [each for each in found if each.mask == mask]
            x = [tasks.index(each.task) + (index + 0.5) * width - 0.4 for each in chosen]
            y = [100 * each.retained for each in chosen]
            errors = [
                [100 * max(0.0, e.retained - e.low) for e in chosen],
                [100 * max(0.0, e.high - e.retained) for e in chosen],
            ]
            ax.bar(x, y, width * 0.92, color=theme.category(index), label=mask, yerr=errors,
                   error_kw={"elinewidth": 0.9, "ecolor": theme["muted"]})  # fmt: skip
        ax.set_xticks(range(len(tasks)), tasks, rotation=20 if len(tasks) > 3 else 0, fontsize=8.5)
        ax.set(ylabel="performance retained (%)")
        ax.set_ylim(bottom=0)
        legend(ax, columns=3)

    caption = (
        f"Each task's headline metric under masks that prune {100 * ratio:g} % of the blocks' weights, in % of the same"
        f" adapter's without a mask; lines: 95 % interval of the metric under the mask. {NO_TIME}"
    )
    rows: list[Sequence[Any]] = [dataclasses.astuple(each) for each in found]
    name = f"mask_retained_{100 * ratio:g}".replace(".", "_")
    return Figure(name, f"Performance under masks at {100 * ratio:g} %", caption, draw, (HEADER, rows))


def transfer(found: Sequence[Retained]) -> list[Figure]:
    """Wanda masks of single tasks on all tasks, at the sparsity that has most of them."""
    wanda = [each for each in found if each.method == "wanda" and each.source]
    if not any(each.source != each.task for each in wanda):
        return []
    ratio = max({e.sparsity for e in wanda}, key=lambda r: sum(e.sparsity == r for e in wanda))
    chosen = [each for each in wanda if each.sparsity == ratio]
    sources, tasks = sorted({each.source for each in chosen}), sorted({each.task for each in chosen})
    values = {(each.source, each.task): 100 * each.retained for each in chosen}

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, max(3.0, 1.5 + 0.42 * len(sources)))
        ax = figure.add_subplot()
        cells = [[values.get((source, task), math.nan) for task in tasks] for source in sources]
        image = ax.imshow(cells, cmap="viridis", vmin=0, vmax=max(100.0, *values.values()), interpolation="none")
        for row, source in enumerate(sources):
            for column, task in enumerate(tasks):
                if (source, task) in values:
                    ink = "#ffffff" if values[source, task] < 70 else "#000000"
                    text = f"{values[source, task]:.0f}"
                    ax.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
        ax.grid(False)
        ax.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=8)
        ax.set_yticks(range(len(sources)), sources, fontsize=8)
        ax.set(xlabel="evaluated on", ylabel="mask calibrated on")
        figure.colorbar(image, ax=ax, shrink=0.85).set_label("retained (%)", fontsize=8.5)

    caption = (
        f"Wanda masks of single tasks ({100 * ratio:g} % pruned) on every task, in % of the same adapter's metric"
        f" without a mask; on the diagonal each task's own. {NO_TIME}"
    )
    rows: list[Sequence[Any]] = [dataclasses.astuple(each) for each in chosen]
    return [Figure("mask_transfer", "The mask of one task on another", caption, draw, (HEADER, rows))]
