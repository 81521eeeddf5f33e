"""Skipping against its price: what is retained of a task metric over the FLOPs that a plan leaves (paper, fig. 11).

Each point is a run or an evaluation under a plan (`ima.report.plans`). Training under the plan
and evaluating an unskipped adapter under it are drawn apart: the companion paper's recovery.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ima.report.figures.drawing import Figure, legend
from ima.report.figures.places import same_price, skip_places
from ima.report.figures.style import MARKERS, Theme
from ima.report.plans import METRICS, TRAINED, Point, points_of, skips_of
from ima.report.run import Run

MAX_MARKED = 40


def points_drawn(runs: Sequence[Run]) -> tuple[str, list[Point]]:
    """The first headline metric for which two runs under plans have a baseline."""
    return next(((m, points) for m in METRICS if len(points := points_of(runs, m)) > 1), ("", []))


def skip_figures(runs: Sequence[Run]) -> list[Figure]:
    """What there is to say of a set with plans; nothing where no run has one."""
    if not any(map(skips_of, runs)):
        return []
    metric, points = points_drawn(runs)
    timed = any(point.seconds is not None for point in points)
    both = bool(pairs_of(points))
    placed = same_price(points)
    if placed and len(placed) == len(points):  # a trade-off would show one price
        return [skip_places(metric, placed)]
    return [
        *([skip_places(metric, placed)] if placed else []),
        skip_tradeoff(runs),
        *([skip_tradeoff(runs, by="seconds")] if timed else []),
        *([recovery(metric, pairs_of(points))] if both else []),
    ]


def skip_tradeoff(runs: Sequence[Run], by: Literal["flops", "seconds"] = "flops") -> Figure:
    price = {"flops": "computation", "seconds": "time"}[by]
    title, name = f"Retained performance over {price} left", "skip_tradeoff" + ("" if by == "flops" else "_seconds")
    metric, points = points_drawn(runs)
    if not points:
        return Figure(name, title, "", missing="needs two runs or evaluations under a skip plan, and their baseline")
    if by == "seconds":
        points = [point for point in points if point.seconds is not None]
    unit = {"flops": "the FLOPs of the prompt's pass that the plan leaves", "seconds": "the time of the prompt's pass"
            " under the plan, measured in turns with the unskipped one"}[by]  # fmt: skip
    caption = (
        f"{metric.replace('/', ', ').replace('_', ' ')} in % of the same adapter's without a plan, over {unit}; the"
        " dotted lines are the unskipped model. Beside a point: its first block, /k where every k-th is skipped;"
        " hollow: for a share of the tokens."
    )

    def left(point: Point) -> float:
        return 100 * (point.left if by == "flops" else point.seconds or math.nan)

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        ax.axhline(100, color=theme["muted"], linestyle=":", linewidth=1)
        ax.axvline(100, color=theme["muted"], linestyle=":", linewidth=1)
        handles = []
        for index, group in enumerate(sorted({point.group for point in points})):
            chosen = [point for point in points if point.group == group]
            colour = theme.category(index)
            for hollow in (False, True):
                some = [point for point in chosen if (point.ratio < 1) is hollow]
                ax.scatter(
                    [left(point) for point in some], [100 * point.retained for point in some], s=38,
                    facecolors="none" if hollow else colour, edgecolors=colour, marker=MARKERS[index % len(MARKERS)],
                    alpha=0.85, zorder=3,
                )  # fmt: skip
            for point in chosen if len(points) <= MAX_MARKED else ():
                ax.annotate(
                    point.mark, (left(point), 100 * point.retained), xytext=(4, 3), textcoords="offset points",
                    fontsize=7, color=theme["muted"],
                )  # fmt: skip
            handles.append(
                Line2D([], [], color=colour, marker=MARKERS[index % len(MARKERS)], linestyle="none", label=group)
            )
        words = {"flops": "FLOPs left", "seconds": "measured time left"}[by]
        ax.set(xlabel=f"{words} (% of the unskipped prompt)", ylabel="performance retained (%)")
        ax.set_ylim(bottom=-2)
        legend(ax, columns=2, handles=handles)

    header = [field.name for field in dataclasses.fields(Point)]
    return Figure(name, title, caption, draw, (header, [list(dataclasses.astuple(point)) for point in points]))


def pairs_of(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """(the unskipped adapter evaluated under a plan, one trained under the same plan)"""
    trained = {
        (point.group.removeprefix(TRAINED), point.what): point for point in points if point.group.startswith(TRAINED)
    }
    return [(point, trained[key]) for point in points if (key := (point.group, point.what)) in trained]


def recovery(metric: str, pairs: Sequence[tuple[Point, Point]]) -> Figure:
    title, name = "Training under a plan against evaluating under it", "skip_recovery"
    caption = (
        f"{metric.replace('/', ', ').replace('_', ' ')} with its 95 % interval: the adapter trained without a plan and"
        " evaluated under one, and an adapter trained under it. Dotted: the first without a plan."
    )

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for index, (label, place, shift) in enumerate(
            (("evaluated under it", 0, -0.12), ("trained under it", 1, 0.12))
        ):
            chosen = [pair[place] for pair in pairs]
            y = [point.value for point in chosen]
            ax.errorbar(
                [at + shift for at in range(len(chosen))], y,
                yerr=[[max(0.0, v - p.low) for v, p in zip(y, chosen, strict=True)],
                      [max(0.0, p.high - v) for v, p in zip(y, chosen, strict=True)]],
                color=theme.category(index), marker=MARKERS[index], markersize=7, linestyle="none", capsize=2.5,
                elinewidth=1, label=label,
            )  # fmt: skip
        for at, (point, _) in enumerate(pairs):
            ax.hlines(point.value / point.retained, at - 0.3, at + 0.3, color=theme["muted"], linestyle=":")
        ax.set_xticks(range(len(pairs)), [f"{point.group}\n{point.what}" for point, _ in pairs])
        ax.set(ylabel=metric.replace("/", ", ").replace("_", " "))
        ax.set_xlim(-0.6, len(pairs) - 0.4)
        ax.set_ylim(0, 1.02)
        legend(ax)

    rows: list[Sequence[object]] = [
        [what, point.group.removeprefix(TRAINED), point.what, point.value, point.low, point.high, point.run]
        for pair in pairs
        for what, point in zip(("evaluated", "trained"), pair, strict=True)
    ]
    return Figure(name, title, caption, draw, (["adapter", "plan", "blocks", "value", "low", "high", "run"], rows))
