"""Mixtures beside each other, as the variants of LLaVA-1.5 in the paper: a panel per entry with a line per run, IMA
against the score of each entry (fig. 9, right), and five measures of every variant in one grid (fig. 13).

The five: cosine of P with T, of a token with itself a block on, token norms, KL(P || T) over the vocabulary, and cosine
of consecutive distributions over the vocabulary. The last two need a reservoir (`sweep=mt_variants` asks for one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from ima.report import curves as series
from ima.report.curves import Curve, Row
from ima.report.figures.drawing import Figure, legend, line, table_of
from ima.report.figures.maps import titles
from ima.report.figures.mixture import one
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES, MARKERS, NUM_CATEGORIES, Theme
from ima.report.labels import shortened
from ima.report.mixture import by_name, entry_names, mixture_points
from ima.report.proxies import relation_text
from ima.report.run import Run

Groups = dict[str, dict[str, list[Row]]]  # run -> entry -> rows
MAX_VARIANTS, MAX_ENTRIES = 6, 8
WIDE, CELL, KEYS = 8.6, 1.45, 1.1  # inches: width of the grid, height of a row, of its legend

MEASURES: tuple[tuple[str, str, bool], ...] = (  # name, axis label, logarithmic
    ("sim", "cosine,\nP with T", False),
    ("consecutive", "cosine,\none block on", False),
    ("norm", "median\nL2 norm", True),
    ("kl", "KL(P || T)\n(nats)", False),
    ("vocabulary_cosine", "vocabulary,\nlayer to layer", False),
)


def groups_of(runs: Sequence[Run]) -> Groups:
    """Runs of one task stand with the entry that has their dataset, else as an entry of its name."""
    found = {run.name: series.by_entry(run.rows) for run in by_name(runs) if run.rows}
    known = {dataset_of(rows): entry for groups in found.values() if len(groups) > 1 for entry, rows in groups.items()}
    for name, groups in found.items():
        if len(groups) == 1:
            (entry, rows), *_ = groups.items()
            found[name] = {known.get(dataset_of(rows), entry or dataset_of(rows) or name): rows}
    return found


def dataset_of(rows: Sequence[Row]) -> str:
    return next((str(row["dataset_a"]) for row in rows if row["dataset_a"] is not None), "")


def variant_figures(runs: Sequence[Run]) -> list[Figure]:
    """Nothing where fewer than two runs with rows are mixtures: their page is that of runs of one task."""
    groups = groups_of(runs)
    if sum(len(entries) > 1 for entries in groups.values()) < 2:
        return []
    measured = [series.alignment_rows(rows) for entries in groups.values() for rows in entries.values()]
    unit = " or ".join(sorted({series.unit_of(series.epochs(rows)) for rows in measured if rows})) or "epoch"
    return [
        overlaid(groups, "compare_ima_by_layer", "Implicit alignment by layer",
                 "Mean cosine of media and texts at every block's output, last measured epoch of each run.",
                 "layer", "mean cosine, P with T", last_layers),
        overlaid(groups, "compare_ima_by_epoch", f"IMA score by {unit}",
                 "Pooled over the layers; 0: the untrained adapter.",
                 unit, "IMA (mean cosine)",
                 lambda rows: series.by_epoch(series.alignment_rows(rows), "ima")),
        overlaid(groups, "compare_val_loss", "Validation loss", "Cross-entropy on the answer tokens, nats per token.",
                 "step", "loss", lambda rows: series.training(rows).get("val")),
        ima_against_scores(runs),
        measure_grid(groups),
    ]  # fmt: skip


def last_layers(rows: Sequence[Row]) -> Curve | None:
    curves = series.by_layer(series.alignment_rows(rows), "sim")
    return curves[max(curves)] if curves else None


def entries_in(groups: Groups) -> dict[str, list[Row]]:
    """Every entry of any run, with the rows of the first run that has it."""
    found: dict[str, list[Row]] = {}
    for entries in groups.values():
        for entry, rows in entries.items():
            found.setdefault(entry, rows)
    return found


def overlaid(
    groups: Groups, name: str, title: str, caption: str, xlabel: str, ylabel: str,
    choose: Callable[[Sequence[Row]], Curve | None],
) -> Figure:  # fmt: skip
    panels = []
    for entry, label in titles(entries_in(groups)).items():
        strokes = []
        for index, (run, entries) in enumerate(groups.items()):
            again = index // NUM_CATEGORIES
            found = choose(entries[entry]) if entry in entries else None
            if found is not None:
                dash, marker = DASHES[(index + again) % len(DASHES)], MARKERS[index % len(MARKERS)]
                strokes.append(Stroke(shortened(run), found, f"c{index % NUM_CATEGORIES}", dash, marker=marker))
        panels.append(Panel(label, strokes))
    figures = multiples(name, title, caption, panels, ylabel=ylabel, xlabel=xlabel, alike="none")
    return one(figures, name, title, "no run has the rows for it")


def ima_against_scores(runs: Sequence[Run]) -> Figure:
    title, name = "IMA against the score of each entry", "compare_ima_scores"
    points = {entry: found for entry in entry_names(runs) if len(found := mixture_points(by_name(runs), entry)) > 1}
    if not points:
        return Figure(name, title, "", missing="needs two runs with IMA and a score of the same entry")
    order = list(dict.fromkeys(point.run for found in points.values() for point in found))
    caption = (
        "A point per run, bars: 95 % intervals. "
        + "; ".join(f"{entry}: {relation_text(found)}" for entry, found in points.items())
        + ". Read within one LLM only."
    )

    def draw(figure: Canvas, theme: Theme) -> None:
        columns = min(4, len(points))
        num_rows = -(-len(points) // columns)
        figure.set_size_inches(WIDE, 2.3 * num_rows + 0.5)
        for index, (entry, found) in enumerate(points.items()):
            ax = figure.add_subplot(num_rows, columns, index + 1)
            for point in found:
                at = order.index(point.run)
                half, low, high = point.bars
                ax.errorbar(
                    [point.x], [point.y], yerr=[[max(0.0, point.y - low)], [max(0.0, high - point.y)]],
                    xerr=[half], color=theme.category(at), marker=MARKERS[at % len(MARKERS)], markersize=6,
                    elinewidth=0.8, linestyle="none", label=shortened(point.run),
                )  # fmt: skip
            ax.set_title(entry, fontsize=9.5, fontweight="normal", pad=4)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.tick_params(labelsize=8)
            ax.set_xlabel("IMA", fontsize=9)
            if index % columns == 0:
                ax.set_ylabel("score", fontsize=9)
        looks = [
            Line2D([], [], color=theme.category(at), marker=MARKERS[at % len(MARKERS)], linestyle="none",
                   label=shortened(run))
            for at, run in enumerate(order)
        ]  # fmt: skip
        legend(figure.axes[0], handles=looks)

    header = ["entry", "run", "ima", "ima_half_width", "score", "low", "high"]
    rows: list[Sequence[Any]] = [
        [entry, point.run, point.x, point.bars[0], point.y, *point.bars[1:]]
        for entry, found in points.items()
        for point in found
    ]
    return Figure(name, title, caption, draw, (header, rows), panels=True, wide=True)


def measured(rows: Sequence[Row], measure: str) -> dict[str, Curve]:
    """Role (P, T or "P with T") -> the measure over the layers, at the last epoch that has it."""
    aligned = series.alignment_rows(rows)
    if measure == "sim":
        curves = series.by_layer(aligned, "sim")
        return {"P with T": curves[max(curves)]} if curves else {}
    if measure == "consecutive":
        kept = series.where(aligned, score="consecutive")
        epochs = series.epochs(kept)
        return {role: series.consecutive(kept, role, 1, epochs[-1]) for role in series.roles_of(kept, "consecutive")}
    score = "norm_q50" if measure == "norm" else measure
    kept = series.where(aligned, score=score, variant=("raw", None))
    last = series.where(kept, epoch=series.epochs(kept)[-1]) if kept else []
    layer = "layer_b" if measure in ("kl", "vocabulary_cosine") else "layer_a"
    if measure == "kl":
        pairs = series.where(last, role_a="P", role_b=series.text_role(last, "kl"))
        return {"P with T": series.curve(pairs, measure, lambda row: row[layer])} if pairs else {}
    return {
        role: series.curve(series.where(last, role_a=role), role, lambda row: row[layer])
        for role in series.roles_of(last, score)
    }


def measure_grid(groups: Groups) -> Figure:
    title, name = "Five measures of every variant", "compare_measures"
    shown = dict(list(groups.items())[:MAX_VARIANTS])
    looks = {entry: index for index, entry in enumerate(list(entries_in(shown))[:MAX_ENTRIES])}
    found = {
        (measure, run, entry): curves
        for measure, _, _ in MEASURES
        for run, entries in shown.items()
        for entry, rows in entries.items()
        if entry in looks
        and (curves := {k: c for k, c in measured(rows, measure).items() if any(map(math.isfinite, c.y))})
    }
    present = [each for each in MEASURES if any(key[0] == each[0] for key in found)]
    if not present:
        return Figure(name, title, "", missing="no alignment rows on the validation split")
    lacking = [label.replace("\n", " ") for measure, label, _ in MEASURES if all(key[0] != measure for key in found)]
    caption = (
        "A column per run, a row per measure over the layers, last measured epoch: cosine of the mean tokens of media"
        " (P) and texts (T), of a token with itself one block on, token norms (log scale), KL divergence of the"
        " distributions over the vocabulary that P and T decode to, and the cosine of such distributions with that of"
        " the layer measured before. Colours: entries; dashed: textual tokens."
    )
    if lacking:
        caption += f" Not measured: {'; '.join(lacking)} (alignment.num_reservoir, alignment.num_vocabulary_layers)."
    if len(groups) > len(shown):
        caption += f" {len(shown)} of {len(groups)} runs are drawn."

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(WIDE, CELL * len(present) + KEYS)
        grid = figure.subplots(len(present), len(shown), squeeze=False, sharex=True, sharey="row")
        for row, (measure, label, log) in enumerate(present):
            for column, run in enumerate(shown):
                ax = grid[row][column]
                for entry, index in looks.items():
                    for role, curve in found.get((measure, run, entry), {}).items():
                        few: dict[str, Any] = (
                            {"marker": MARKERS[index], "markersize": 3} if len(curve.points) < 15 else {}
                        )
                        line(ax, curve, theme.category(index), band=role == "P with T",
                             linestyle=DASHES[1 if role.startswith("T") else 0], linewidth=1.3, **few)  # fmt: skip
                if log:
                    ax.set_yscale("log")
                    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=5))
                    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    ax.yaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
                ax.tick_params(labelsize=8)
                if row == 0:
                    ax.set_title(shortened(run, 24), fontsize=9.5, fontweight="normal", pad=4)
                if column == 0:
                    ax.set_ylabel(label, fontsize=8.5)
                if row == len(present) - 1:
                    ax.set_xlabel("layer", fontsize=9)
        keys = [
            Line2D([], [], color=theme.category(index), label=entry, marker=MARKERS[index], markersize=3)
            for entry, index in looks.items()
        ]
        keys += [
            Line2D([], [], color=theme["muted"], linestyle=DASHES[place], label=text)
            for place, text in enumerate(("media (P), P with T", "texts (T)"))
        ]
        legend(figure.axes[0], handles=keys, columns=6)

    table = table_of(
        [([measure, run, entry, role], curve) for (measure, run, entry), curves in found.items()
         for role, curve in curves.items()],
        ["measure", "run", "entry", "role"], "layer",
    )  # fmt: skip
    return Figure(name, title, caption, draw, table, panels=True, wide=True)
