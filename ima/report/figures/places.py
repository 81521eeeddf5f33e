"""Which blocks matter: one adapter without a part of a few blocks at a time, score and loss over where they are.

For plans that differ in nothing but their blocks, whose computation is the same: a trade-off would show one price.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ima.report.figures.drawing import Figure, legend
from ima.report.figures.style import MARKERS, NARROW, Theme
from ima.report.plans import Point


def same_price(points: Sequence[Point]) -> list[Point]:
    """The points that differ from others in nothing but where the skipped blocks are."""
    alike: dict[tuple[str, int, float], list[Point]] = {}
    for point in points:
        if point.blocks:
            alike.setdefault((point.group, len(point.blocks), point.ratio), []).append(point)
    return [p for some in alike.values() if len({point.blocks for point in some}) > 1 for p in some]


def skip_places(metric: str, points: Sequence[Point]) -> Figure:
    title, name = "Which blocks can be skipped", "skip_blocks"
    with_loss = any(point.loss is not None for point in points)
    series = sorted({(point.group, len(point.blocks), point.ratio) for point in points})
    caption = (
        f"{metric.replace('/', ', ').replace('_', ' ')}{' and validation loss' if with_loss else ''} where only these"
        " blocks are skipped, from the first to the last of each bar; vertical lines: 95 % interval. Dotted: the same"
        " adapter with nothing skipped. All plans of one look save the same computation."
    )

    def label_of(key: tuple[str, int, float]) -> str:
        group, num, ratio = key
        share = "" if ratio == 1 else f" for {100 * ratio:g} % of them"
        return f"{group}: {num} block{'s' if num > 1 else ''}{share}"

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, 5.2 if with_loss else 3.7)
        grid = figure.subplots(1 + with_loss, 1, squeeze=False, sharex=True)
        axes = [row[0] for row in grid]
        for index, key in enumerate(series):
            colour = theme.category(index)
            shift = 0.14 * (index - (len(series) - 1) / 2)
            for point in points:
                if (point.group, len(point.blocks), point.ratio) != key:
                    continue
                first, last = point.blocks[0] - 0.35, point.blocks[-1] + 0.35
                middle = (first + last) / 2 + shift
                axes[0].hlines(point.value, first, last, color=colour, linewidth=2)
                axes[0].vlines(middle, point.low, point.high, color=colour, linewidth=1)
                axes[0].plot([middle], [point.value], color=colour, marker=MARKERS[index % len(MARKERS)])
                if point.loss is not None:
                    axes[-1].hlines(point.loss, first, last, color=colour, linewidth=2)
                    axes[-1].plot([middle], [point.loss], color=colour, marker=MARKERS[index % len(MARKERS)])
        for level in {point.value / point.retained for point in points if point.retained}:
            axes[0].axhline(level, color=theme["muted"], linestyle=":", linewidth=1)
        for loss in {point.whole_loss for point in points if point.whole_loss is not None} if with_loss else ():
            axes[1].axhline(loss, color=theme["muted"], linestyle=":", linewidth=1)
        axes[0].set(ylabel=metric.replace("/", ", ").replace("_", " "))
        axes[0].set_ylim(bottom=min(0.0, *(point.low for point in points)))
        if with_loss:
            axes[1].set(ylabel="validation loss")
        axes[-1].set(xlabel="skipped blocks")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        looks = [
            Line2D([], [], color=theme.category(index), marker=MARKERS[index % len(MARKERS)], label=label_of(key))
            for index, key in enumerate(series)
        ]
        legend(axes[0], columns=2, handles=looks)

    header = ["group", "blocks", "ratio", metric, "low", "high", "retained", "val/loss", "whole_val/loss",
              "flops_left", "run"]  # fmt: skip
    rows: list[Sequence[object]] = [
        [p.group, " ".join(map(str, p.blocks)), p.ratio, p.value, p.low, p.high, p.retained, p.loss, p.whole_loss,
         p.left, p.run]
        for p in sorted(points, key=lambda point: (point.group, point.ratio, point.blocks))
    ]  # fmt: skip
    return Figure(name, title, caption, draw, (header, rows), panels=with_loss)
