"""The map of layers and epochs of a mixture: one for each entry, all with one scale; and how entries are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Canvas

from ima.report import curves as series
from ima.report.curves import Curve, Row
from ima.report.figures.drawing import Figure, table_of, thinned
from ima.report.figures.panels import REST_HEIGHT, ROW_HEIGHT
from ima.report.figures.style import NARROW, Theme

Groups = Mapping[str, Sequence[Row]]


def finite(curves: dict[int, Curve]) -> dict[int, Curve]:
    return {epoch: found for epoch, found in curves.items() if any(map(math.isfinite, found.y))}


def titles(groups: Groups) -> dict[str, str]:
    """Entry -> its name, with the modality where the name does not say it."""
    out = {}
    for entry, rows in groups.items():
        modality = series.modality_of(rows)
        out[entry] = entry if not modality or modality in entry else f"{entry} ({modality})"
    return out


def heat_map(aligned: Groups) -> Figure:
    curves = {entry: finite(series.by_layer(rows, "sim")) for entry, rows in aligned.items()}
    curves = {entry: found for entry, found in curves.items() if found}
    epochs = sorted({epoch for found in curves.values() for epoch in found})
    unit = series.unit_of(epochs)
    title, name = f"IMA by layer and {unit}", "ima_heatmap"
    caption = "The same similarity as maps with one scale: where in the stack, and when in training, it rises or falls."
    if not curves:
        return Figure(name, title, caption, missing="no `sim` rows with numbers on the validation split")
    if len(epochs) < 2:
        return Figure(name, title, caption, missing=f"only one {unit} was measured: a map needs two")
    points = {
        entry: {(epoch, int(x)): y for epoch, one_curve in found.items() for x, y, _ in one_curve.points}
        for entry, found in curves.items()
    }
    values = [y for cells in points.values() for y in cells.values() if math.isfinite(y)]
    all_layers = sorted({layer for cells in points.values() for _, layer in cells})
    labels = titles({entry: aligned[entry] for entry in curves})

    def draw(figure: Canvas, theme: Theme) -> None:
        columns = min(2, len(curves))
        num_rows = -(-len(curves) // columns)
        figure.set_size_inches(NARROW, ROW_HEIGHT * num_rows + REST_HEIGHT)
        grid = figure.subplots(num_rows, columns, squeeze=False, sharex=True, sharey=True)
        for index, entry in enumerate(curves):
            ax = grid[index // columns][index % columns]
            cells = [[points[entry].get((epoch, layer), math.nan) for epoch in epochs] for layer in all_layers]
            image = ax.imshow(cells, aspect="auto", origin="lower", cmap="viridis", interpolation="none",
                              vmin=min(values), vmax=max(values))  # fmt: skip
            ax.grid(False)
            ax.set_title(labels[entry], fontsize=9.5, fontweight="normal", pad=4)
            step = max(1, round(len(all_layers) / 5))
            ax.set_yticks(range(0, len(all_layers), step), [str(layer) for layer in all_layers[::step]])
            ticks = thinned(range(len(epochs)), 7)
            ax.set_xticks(ticks, [str(epochs[tick]) for tick in ticks])
            ax.tick_params(labelbottom=index + columns >= len(curves))
            if index % columns == 0:
                ax.set_ylabel("layer")
            if index + columns >= len(curves):
                ax.set_xlabel(unit)
        for index in range(len(curves), num_rows * columns):
            figure.delaxes(grid[index // columns][index % columns])
        bar = figure.colorbar(image, ax=figure.axes, label="mean cosine, P against T", pad=0.02, shrink=0.9)
        bar.outline.set_visible(False)

    table = table_of(
        [([entry, series.modality_of(aligned[entry]), epoch], found)
         for entry, by_epoch in curves.items() for epoch, found in sorted(by_epoch.items())],
        ["entry", "modality", unit], "layer",
    )  # fmt: skip
    return Figure(name, title, caption, draw, table, panels=True)
