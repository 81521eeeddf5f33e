"""Small multiples: several plots over the layers that share axes, strokes and one legend.

A panel without a curve that has numbers is left out; a figure without panels is not made at all, so that a run that
measured little has a short page. The CSV is exactly what is drawn: one line per panel, stroke and layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from ima.report.curves import Curve
from ima.report.figures.drawing import MAX_LINES, Figure, Table, legend, line, table_of
from ima.report.figures.style import NARROW, Theme

ROW_HEIGHT, REST_HEIGHT = 1.85, 1.0  # inches: one row of panels; axis label and legend


@dataclasses.dataclass
class Stroke:
    """`colour` and `dash`: a name of style.NAMED and a style of style.DASHES. One label looks alike in all panels.
    `around`: limits by x that are no error (quartiles). band: whether errors are drawn."""

    label: str
    curve: Curve
    colour: str
    dash: Any = "-"
    around: tuple[Curve, Curve] | None = None
    marker: str = "o"
    band: bool = True

    @property
    def drawn(self) -> bool:
        return any(map(math.isfinite, self.curve.y))


@dataclasses.dataclass
class Panel:
    """`level`: height and name of a dotted line that values are read against."""

    title: str
    strokes: list[Stroke]
    log: bool = False
    level: tuple[float, str] | None = None
    ylabel: str = ""


def multiples(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[Panel],
    columns: int = 2,
    ylabel: str = "",
    alike: Literal["all", "row", "none"] = "all",
    xlabel: str = "layer",
    key: str = "",
) -> list[Figure]:
    """One figure, or none where no panel has numbers. `alike`: which panels have one y axis. xlabel: its first word is
    the column of the CSV. key: the legend's title."""
    shown = [
        dataclasses.replace(panel, strokes=[stroke for stroke in panel.strokes if stroke.drawn]) for panel in panels
    ]
    shown = [panel for panel in shown if panel.strokes]
    if not shown:
        return []
    columns = min(columns, len(shown))
    num_rows = -(-len(shown) // columns)

    def draw(figure: Canvas, theme: Theme) -> None:
        figure.set_size_inches(NARROW, ROW_HEIGHT * num_rows + REST_HEIGHT)
        grid = figure.subplots(num_rows, columns, squeeze=False, sharex=True, sharey=alike)
        handles: dict[str, Any] = {}
        for index, panel in enumerate(shown):
            ax = grid[index // columns][index % columns]
            draw_panel(ax, panel, theme)
            if index % columns == 0 and ylabel:
                ax.set_ylabel(ylabel, fontsize=9)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=12 // columns, integer=True, min_n_ticks=1))
            if index + columns >= len(shown):
                ax.set_xlabel(xlabel)
                ax.tick_params(labelbottom=True)
            if len(panel.strokes) > 1 or panel.level:  # one line alone is told by the panel's title
                handles |= {label: h for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        for index in range(len(shown), num_rows * columns):
            figure.delaxes(grid[index // columns][index % columns])
        if handles:
            longest = max(map(len, handles))
            fitting = MAX_LINES if longest <= 3 else 4 if longest <= 12 else 3 if longest <= 18 else 2
            legend(figure.axes[0], key or None, fitting, list(handles.values()))

    strokes = [([panel.title, stroke.label], stroke) for panel in shown for stroke in panel.strokes]
    if any(stroke.around for _, stroke in strokes):
        table = quartile_table(strokes)
    else:
        table = table_of([(key, stroke.curve) for key, stroke in strokes], ["panel", "line"], xlabel.split()[0])
    return [Figure(name, title, caption, draw, table, panels=True)]


def draw_panel(ax: Axes, panel: Panel, theme: Theme) -> None:
    for stroke in panel.strokes:
        few: dict[str, Any] = {"marker": stroke.marker, "markersize": 3} if len(stroke.curve.points) < 15 else {}
        if stroke.around:
            low, high = stroke.around
            ax.fill_between(low.x, low.y, high.y, color=theme[stroke.colour], alpha=0.18, linewidth=0)
        line(ax, stroke.curve, theme[stroke.colour], stroke.label, stroke.band, linestyle=stroke.dash, linewidth=1.5,
             **few)  # fmt: skip
    if panel.level:
        ax.axhline(panel.level[0], color=theme["muted"], linestyle=":", linewidth=1.2, label=panel.level[1])
    ax.set_title(panel.title, fontsize=9.5, fontweight="normal", pad=4)
    if panel.ylabel:
        ax.set_ylabel(panel.ylabel, fontsize=9)
    if panel.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_locator(NullLocator())


def quartile_table(strokes: Sequence[tuple[list[str], Stroke]]) -> Table:
    rows: list[Sequence[Any]] = []
    for key, stroke in strokes:
        low, high = (dict(zip(c.x, c.y, strict=True)) for c in stroke.around or (stroke.curve, stroke.curve))
        rows += [[*key, int(x), y, low.get(x, math.nan), high.get(x, math.nan)] for x, y, _ in stroke.curve.points]
    return ["panel", "line", "layer", "median", "q25", "q75"], rows
