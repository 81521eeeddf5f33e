"""Is IMA a proxy of performance? Scatter plots over the runs of a page, and the table of the correlations.

Each with n, a bootstrap 95 % interval and the p of a permutation test, over all runs and without the controls, which
are far from all others and can make a relation by themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from ima.report.figures.drawing import Figure
from ima.report.figures.style import Theme
from ima.report.labels import shortened
from ima.report.page.words import value_text
from ima.report.relations import COLUMNS, GAP, Point, points_of, relations, targets
from ima.report.run import Run

MAX_FIGURES, MAX_LABELLED, MAX_BARS = 5, 14, 60
RISES = (4.0, -9.0, 13.0, -18.0, 22.0, -27.0, 31.0, -36.0)  # points


def relation_text(points: Sequence[Point]) -> str:
    found = relations(points)[0]
    if not math.isfinite(found.value):
        return f"n = {found.n}, too few or too alike to correlate"
    p = f", p = {found.p:.2g}" if math.isfinite(found.p) else ""
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if math.isfinite(found.low) else ""
    return f"Spearman ρ = {found.value:.2f}{interval}{p}, n = {found.n}"


def chosen_targets(runs: Sequence[Run], x: str) -> list[str]:
    """The first task metrics and the loss."""
    names = targets(runs, x)
    return names if len(names) <= MAX_FIGURES else [*names[: MAX_FIGURES - 1], names[-1]]


def proxy_figures(runs: Sequence[Run]) -> list[Figure]:
    names = chosen_targets(runs, COLUMNS[0])
    if not names:
        missing = "needs three runs with `ima/mean` and a task metric"
        return [Figure("ima_vs_task", "IMA against performance", "", missing=missing)]
    gaps = chosen_targets(runs, GAP)[:2]
    return [proxy_figure(runs, name) for name in names] + [proxy_figure(runs, name, GAP) for name in gaps]


def proxy_figure(runs: Sequence[Run], metric: str, x: str = COLUMNS[0]) -> Figure:
    points = points_of(runs, x, metric)
    trained = [point for point in points if not point.control]
    short, long = ("IMA gap", "IMA of matched minus all pairs") if x == GAP else ("IMA", "IMA")
    track, _, score = metric.partition("/")
    caption = relation_text(points) + "."
    if len(trained) < len(points):
        caption = f"All: {caption} Without controls (hollow): {relation_text(trained)}."
    if len({point.group for point in points}) < len(points):
        caption += " Checkpoints of one training are resampled together."
    caption += " Read within one LLM only."

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        size = 34 if len(points) <= MAX_BARS else 9
        for control in (False, True):
            chosen = [point for point in points if point.control == control]
            colour = theme["before" if control else "c0"]
            if len(points) <= MAX_BARS:
                bars = [[point.y - point.bars[1] for point in chosen], [point.bars[2] - point.y for point in chosen]]
                x, y = [point.x for point in chosen], [point.y for point in chosen]
                sides = np.clip(bars, 0, None)
                ax.errorbar(x, y, sides, [point.bars[0] for point in chosen], "none", ecolor=colour, alpha=0.35)
            ax.scatter(
                [point.x for point in chosen], [point.y for point in chosen], s=size, marker="^" if control else "o",
                facecolors="none" if control else colour, edgecolors=colour, alpha=0.85, linewidths=1.2 * control,
            )  # fmt: skip
        if len(points) <= MAX_LABELLED:
            ax.margins(0.14)
            names = [shortened(point.run, 22) for point in points]
            marks, frame = ax.transData.transform([(point.x, point.y) for point in points]), ax.get_window_extent()
            at = [(72 / figure.dpi * x, 72 / figure.dpi * y) for x, y in marks.tolist()]
            found = places(names, at, 72 / figure.dpi * frame.x1, 72 / figure.dpi * frame.x0)
            for name, point, (side, shift, rise) in zip(names, points, found, strict=True):
                ax.annotate(
                    name, (point.x, point.y), xytext=(shift, rise), textcoords="offset points",
                    fontsize=7.5, color=theme["muted"], horizontalalignment=side,
                )  # fmt: skip
        ax.set(xlabel=f"{long} (mean over the layers)", ylabel=f"{score.replace('_', ' ')}, {track}")

    header = ["run", x, metric, "control", "training"]
    rows: list[Sequence[Any]] = [[p.run, p.x, p.y, int(p.control), p.group] for p in points]
    name = f"{x.partition('/')[0]}_vs_{track}_{score}"
    return Figure(name, f"{short} against {score.replace('_', ' ')} on {track}", caption, draw, (header, rows))


def places(
    names: Sequence[str], at: Sequence[tuple[float, float]], right: float, left: float = 0.0
) -> list[tuple[str, float, float]]:
    """Where each label goes (alignment, points to the right, points up): the first of 16 places that stays between
    `left` and `right` and meets no label before it and no point. at: the marks' places, in points, as the limits."""
    taken: list[tuple[float, float, float, float]] = []
    chosen = []
    for name, (x, y) in zip(names, at, strict=True):
        width, sides = 4.3 * len(name), ("right", "left") if x > (left + right) / 2 else ("left", "right")
        best: tuple[float, str, float, tuple[float, float, float, float]] | None = None
        for side, rise in [(side, rise) for rise in RISES for side in sides]:
            first = x + 5 if side == "left" else x - 5 - width
            box = (first, y + rise, first + width, y + rise + 8)
            hits = 2 * sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            hits += sum(box[0] < a < box[2] and box[1] - 3 < b < box[3] + 3 for a, b in at)
            hits += 3 * (box[0] < left or box[2] > right)
            if best is None or hits < best[0]:
                best = (hits, side, rise, box)
        assert best is not None
        taken.append(best[3])
        chosen.append((best[1], 5.0 if best[1] == "left" else -5.0, best[2]))
    return chosen


def correlation_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row per score, metric, set of runs (all, without controls) and kind of correlation."""
    rows = []
    for x in COLUMNS:
        for metric in chosen_targets(runs, x):
            points = points_of(runs, x, metric)
            trained = [point for point in points if not point.control]
            sets = {"all": points} | ({"without controls": trained} if len(trained) < len(points) else {})
            for name, chosen in sets.items():
                rows += [{"x": x, "y": metric, "runs": name} | dataclasses.asdict(each) for each in relations(chosen)]
    return rows


def proxy_section(rows: Sequence[dict[str, Any]]) -> str:
    """The correlations as a table, a line per pair and set; empty where there are none."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    heads = ["score", "metric", "runs", "n", *itertools.chain(*((kind.capitalize(), "p") for kind in kinds))]
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        cells = lines.setdefault((row["x"], row["y"], row["runs"]), [f'<td class="number">{row["n"]}</td>'])
        interval = f"<small>{row['low']:.2f} to {row['high']:.2f}</small>" if math.isfinite(row["low"]) else ""
        cells.append(f'<td class="number">{value_text(row["value"])}{interval}</td>')
        cells.append(f'<td class="number">{value_text(row["p"])}</td>')
    if not lines:
        return ""
    head = "".join(
        f'<th scope="col"{" class=number" if place > 2 else ""}>{escape(name)}</th>' for place, name in enumerate(heads)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(x)}</th><td>{escape(y)}</td><td>{escape(which)}</td>{"".join(cells)}</tr>'
        for (x, y, which), cells in lines.items()
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="note">Small: bootstrap 95 % interval over the runs; p of a permutation test, none where points are'
        " checkpoints of one training. Controls: random weights or noise for an encoder. Also in proxies.csv.</p>"
    )
