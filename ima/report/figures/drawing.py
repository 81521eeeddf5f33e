"""What a figure is: chosen data, a drawing of it, a sentence that tells how to read it; and strokes they share.

A figure whose rows are missing carries the reason instead of a picture; the page prints that. Every figure is also a
file three times: SVG and PNG on white, and a CSV of exactly what is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ima.core.csv_text import csv_text
from ima.core.files import write_atomic
from ima.report.curves import Curve
from ima.report.figures.style import Theme, plain_svg, render, themed_svg

Draw = Callable[[Canvas, Theme], None]
Table = tuple[Sequence[str], list[Sequence[Any]]]
MAX_LINES = 8


@dataclasses.dataclass
class Figure:
    """`draw` is None where there is nothing to draw; `missing` then says why. `table`: header and rows of the CSV.
    `panels`: of several plots that have titles of their own. `wide`: takes the page's whole width."""

    name: str
    title: str
    caption: str
    draw: Draw | None = None
    table: Table = ((), [])
    missing: str = ""
    panels: bool = False
    wide: bool = False

    def inline(self) -> str:
        """SVG for the page. Needs a `draw`."""
        assert self.draw is not None
        raw = render(self.draw, Theme(placeholders=True), "svg")[0]
        return themed_svg(raw, self.name.replace("_", "-"), f"{self.title}. {self.caption}")

    def save(self, folder: Path) -> None:
        """Write <name>.svg, .png and .csv."""
        if self.draw is None:
            return
        draw = self.draw

        def titled(figure: Canvas, theme: Theme) -> None:
            draw(figure, theme)
            if self.panels:
                figure.suptitle(self.title, x=0.01, horizontalalignment="left", fontsize=11.5, fontweight="bold")
            else:
                figure.axes[0].set_title(self.title)

        svg, png = render(titled, Theme(), "svg", "png")
        write_atomic(folder / f"{self.name}.svg", plain_svg(svg, self.name))
        write_atomic(folder / f"{self.name}.png", png)
        write_atomic(folder / f"{self.name}.csv", csv_text(*self.table))


def table_of(curves: Sequence[tuple[Sequence[Any], Curve]], keys: Sequence[str], x: str) -> Table:
    """CSV content: one line per point, the curve's own keys first; low and high are 95 % limits."""
    rows: list[Sequence[Any]] = [
        [*key, int(at), value, se, low, high]
        for key, found in curves
        for (at, value, se), low, high in zip(found.points, *found.band, strict=True)
    ]
    return [*keys, x, "value", "se", "low", "high"], rows


def line(ax: Axes, found: Curve, colour: str, label: str | None = None, band: bool = True, **style: Any) -> None:
    if band and found.has_band and len(found.points) == 1:
        ax.vlines(found.x, *found.band, color=colour, linewidth=1)
    elif band and found.has_band:
        ax.fill_between(found.x, *found.band, color=colour, alpha=0.16, linewidth=0)
    ax.plot(found.x, found.y, color=colour, label=label, **style)


def thinned(items: Sequence[int], most: int = MAX_LINES) -> list[int]:
    """At most `most` of them, evenly spaced, first and last always there."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def legend(ax: Axes, title: str | None = None, columns: int = 4, handles: Sequence[Any] | None = None) -> None:
    """Below the plot, where it hides no line and takes no width."""
    figure = ax.get_figure()
    assert isinstance(figure, Canvas)
    shown = handles if handles is not None else ax.get_legend_handles_labels()[0]
    length = 1.4 if len(shown) > 5 else 2.2
    found = figure.legend(
        handles=shown,
        title=title,
        loc="outside lower center",
        ncols=min(columns, len(shown)),
        handlelength=length,
        columnspacing=1.3,
    )
    found.get_title().set_fontsize(9)


def whole_ticks(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
