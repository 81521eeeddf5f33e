"""Figures over several runs: the layer curves and learning curves laid over each other, proxies, plans, cones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure as Canvas

from ima.report import curves as series
from ima.report.curves import Curve
from ima.report.figures.cones import compared_cones
from ima.report.figures.drawing import Figure, legend, line, table_of, whole_ticks
from ima.report.figures.masks import mask_rows, overlap_figures
from ima.report.figures.retained import retained_figures
from ima.report.figures.skip import skip_figures
from ima.report.figures.style import DASHES, HEIGHT, MARKERS, NUM_CATEGORIES, Theme
from ima.report.figures.task import HEADLINE_SCORES
from ima.report.figures.variants import variant_figures
from ima.report.labels import shortened
from ima.report.proxies import proxy_figures
from ima.report.run import Run

MAX_OVERLAID = 16
LINE_HEIGHT = 0.2  # inches of a line of the legend


def overlay(
    runs: Sequence[Run],
    name: str,
    title: str,
    caption: str,
    x: tuple[str, str],
    ylabel: str,
    choose: Callable[[Run], Curve | None],
) -> Figure:
    """One line per run. `x`: the axis label and the name of its CSV column."""
    curves = [(run.name, found) for run in runs if (found := choose(run)) and any(map(math.isfinite, found.y))]
    if not curves:
        why = (
            "no run has the rows for it"
            if any(run.rows for run in runs)
            else f"curves are laid over each other for up to {MAX_OVERLAID} runs; give fewer folders to see them"
        )
        return Figure(name, title, caption, missing=why)
    if all(len(found.points) == 1 for _, found in curves):
        return Figure(name, title, caption, missing="each run was measured once; the table has the numbers")

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_figheight(HEIGHT + LINE_HEIGHT * max(0, (len(curves) + 1) // 2 - 4))
        ax = figure.add_subplot()
        for index, (label, found) in enumerate(curves):
            again = index // NUM_CATEGORIES  # colours come again with other dashes
            line(
                ax,
                found,
                theme.category(index),
                shortened(label),
                linestyle=DASHES[(index + again) % len(DASHES)],
                marker=MARKERS[(index + again) % len(MARKERS)],
                markevery=max(1, len(found.points) // 7),
            )
        ax.set(xlabel=x[0], ylabel=ylabel)
        whole_ticks(ax)
        legend(ax, columns=2)

    return Figure(name, title, caption, draw, table_of([([label], found) for label, found in curves], ["run"], x[1]))


def last_layers(run: Run) -> Curve | None:
    curves = series.by_layer(series.alignment_rows(run.rows), "sim")
    return curves[max(curves)] if curves else None


def task_curve(run: Run) -> Curve | None:
    """The first headline metric that the run has, on its first track."""
    scores = series.task_scores(run.rows)
    score = next((score for score in (*HEADLINE_SCORES, *sorted(scores)) if score in scores), None)
    return next(iter(scores[score].values())) if score else None


def comparison_figures(runs: Sequence[Run]) -> list[Figure]:
    """Overlays and scatter plots; never a figure per run, so a thousand runs cost what two cost. Of mixtures, with a
    panel for each entry."""
    return [
        *(variant_figures(runs) or [*overlays(runs), *proxy_figures(runs)]),
        *skip_figures(runs),
        *retained_figures(runs),
        *overlap_figures(mask_rows(runs)),
        *compared_cones(runs),
    ]


def overlays(runs: Sequence[Run]) -> list[Figure]:
    aligned = [series.alignment_rows(run.rows) for run in runs]
    units = {series.unit_of(series.epochs(rows)) for rows in aligned if rows}
    unit = " or ".join(sorted(units)) or "epoch"
    media = " or ".join(sorted({series.media_word(rows) for rows in aligned if rows})) or "media"
    return [
        overlay(runs, "compare_ima_by_layer", "Implicit alignment by layer",
                f"Mean cosine of {media} and texts at every block's output, last measured epoch of each run.",
                ("layer", "layer"), "mean cosine, P against T", last_layers),
        overlay(runs, "compare_ima_by_epoch", f"IMA score by {unit}", "Pooled over the layers; band: 95 % interval.",
                (f"{unit} (0 = untrained adapter)", unit.replace(" ", "_")), "IMA (mean cosine)",
                lambda run: series.by_epoch(series.alignment_rows(run.rows), "ima")),
        overlay(runs, "compare_val_loss", "Validation loss", "Cross-entropy on the answer tokens, nats per token.",
                ("step", "step"), "loss", lambda run: series.training(run.rows).get("val")),
        overlay(runs, "compare_task", "Task metric by epoch", "The run's headline metric on its first track, T0 where"
                " there is one; band: 95 % interval.", ("epoch", "epoch"), "task metric", task_curve),
    ]  # fmt: skip
