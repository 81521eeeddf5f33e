"""Figures over several runs: the layer curves and learning curves laid over each other, IMA against performance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure as Canvas

from ima.report import series
from ima.report.drawing import Figure, legend, line, table_of
from ima.report.figures_cones import compared_cones
from ima.report.figures_skip import skip_figures
from ima.report.figures_task import HEADLINE_SCORES
from ima.report.load import Run
from ima.report.series import Curve
from ima.report.style import DASHES, MARKERS, Theme

MAX_OVERLAID = 8
SCATTERED = tuple(
    f"{track}/{score}" for score in ("noun_accuracy", "accuracy", "cider_d", "cider") for track in ("T1", "T0", "test")
)


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

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        for index, (label, found) in enumerate(curves):
            line(
                ax,
                found,
                theme.category(index),
                shortened(label),
                linestyle=DASHES[index % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)],
                markevery=max(1, len(found.points) // 7),
            )
        ax.set(xlabel=x[0], ylabel=ylabel)
        legend(ax, columns=2)

    return Figure(name, title, caption, draw, table_of([([label], found) for label, found in curves], ["run"], x[1]))


def shortened(label: str, most: int = 26) -> str:
    short = label if len(label) <= most else f"{label[:12]}…{label[-(most - 13) :]}"
    return f" {short}" if short.startswith("_") else short  # matplotlib leaves labels with an underscore out


def last_layers(run: Run) -> Curve | None:
    curves = series.by_layer(series.alignment_rows(run.rows), "sim")
    return curves[max(curves)] if curves else None


def task_curve(run: Run) -> Curve | None:
    """The first headline metric that the run has, on its first track."""
    scores = series.task_scores(run.rows)
    score = next((score for score in (*HEADLINE_SCORES, *sorted(scores)) if score in scores), None)
    return next(iter(scores[score].values())) if score else None


def headline_scores(runs: Sequence[Run], names: Sequence[str]) -> str | None:
    """The first metric of `names` that at least two runs have."""
    return next((name for name in names if sum(run.metrics.get(name) is not None for run in runs) > 1), None)


def scatter(runs: Sequence[Run]) -> Figure:
    title, name = "IMA against performance", "ima_vs_task"
    caption = "Every run that has both numbers is a point; a relation seen here holds within one LLM only."
    score = headline_scores(runs, SCATTERED)
    points = [
        (run.name, a, b)
        for run in runs
        if score
        if (a := run.metrics.get("ima/mean")) is not None and (b := run.metrics.get(score)) is not None
    ]
    if len(points) < 2 or score is None:
        return Figure(name, title, caption, missing="needs two runs with `ima/mean` and a task metric")

    def draw(figure: Canvas, theme: Theme) -> None:
        ax = figure.add_subplot()
        size = 34 if len(points) <= 60 else 9
        ax.scatter(
            [a for _, a, _ in points], [b for _, _, b in points], s=size, color=theme["c0"], alpha=0.75, linewidth=0
        )
        if len(points) <= MAX_OVERLAID:
            middle = (min(a for _, a, _ in points) + max(a for _, a, _ in points)) / 2
            for label, a, b in points:
                side, shift = ("right", -5) if a > middle else ("left", 5)
                ax.annotate(
                    shortened(label, 20),
                    (a, b),
                    xytext=(shift, 4),
                    textcoords="offset points",
                    fontsize=8,
                    color=theme["muted"],
                    horizontalalignment=side,
                )
            ax.margins(0.12)
        ax.set(xlabel="IMA (mean over the layers)", ylabel=score.replace("_", " ").replace("/", ", "))

    return Figure(
        name,
        title,
        f"{caption} n = {len(points)}.",
        draw,
        (["run", "ima/mean", score], [list(point) for point in points]),
    )


def comparison_figures(runs: Sequence[Run]) -> list[Figure]:
    """Overlays and the scatter plot; never a figure per run, so a thousand runs cost what two cost."""
    return [
        overlay(runs, "compare_ima_by_layer", "Implicit alignment by layer",
                "Mean cosine of pictures and texts at every block's output, last measured epoch of each run.",
                ("layer", "layer"), "mean cosine, P against T", last_layers),
        overlay(runs, "compare_ima_by_epoch", "IMA score by epoch", "Pooled over the layers; band: 95 % interval.",
                ("epoch (0 = untrained adapter)", "epoch"), "IMA (mean cosine)",
                lambda run: series.by_epoch(series.alignment_rows(run.rows), "ima")),
        overlay(runs, "compare_val_loss", "Validation loss", "Cross-entropy on the answer tokens, nats per token.",
                ("step", "step"), "loss", lambda run: series.training(run.rows).get("val")),
        overlay(runs, "compare_task", "Task metric by epoch", "The run's headline metric on its first track, T0 where"
                " there is one; band: 95 % interval.", ("epoch", "epoch"), "task metric", task_curve),
        scatter(runs),
        *skip_figures(runs),
        *compared_cones(runs),
    ]  # fmt: skip
