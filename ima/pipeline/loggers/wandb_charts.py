"""What W&B shows beside scalars: per score a chart with layers on x and a line per epoch, and a map of layers x epochs.

Made from rows alone, anew at each measurement (the last one shows all epochs). Scores of the paper at the block
outputs, variant raw, validation split.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

from ima.core.metric_names import BLOCK_OUTPUTS
from ima.core.types import Row
from ima.report.curves import alignment_rows, by_entry
from ima.report.figures import alignment as figures_alignment
from ima.report.figures import maps
from ima.report.figures.style import Theme, render

# score -> (roles of the two sides, title)
CHARTS = {
    "sim": (("P", "T"), "Implicit alignment by layer (mean cosine, P with T)"),
    "sim_gap": (("P", "T"), "Own text minus other texts by layer"),
    "norm_q50": (("P", None), "Median norm of perceptual tokens by layer"),
    "consecutive": (("P", "P"), "Perceptual tokens from layer to layer (cosine)"),
}
MAX_LINES = 8


def charted(row: Row) -> bool:
    roles = CHARTS[row.score][0] if row.score in CHARTS else None
    fits = roles == (row.role_a, row.role_b) and row.variant == "raw" and row.site in BLOCK_OUTPUTS
    near = row.score != "consecutive" or row.layer_b == (row.layer_a or 0) + 1
    return fits and near and row.layer_a is not None and row.split != "train" and row.track is None


class Charts:
    """The rows that are drawn, of every epoch so far; measured again, the newer value counts. mixture: whether charts
    are of an entry each, named by it."""

    def __init__(self, mixture: bool = False) -> None:
        self.mixture = mixture
        self.rows: list[Row] = []
        self.values: dict[tuple[str, str | None], dict[int, dict[int, float]]] = {}

    def add(self, rows: Sequence[Row]) -> list[tuple[str, str | None]]:
        """Scores (with their task, in a mixture) that have something new."""
        changed = []
        for row in rows:
            if charted(row):
                key = row.score, row.task
                assert row.layer_a is not None
                self.values.setdefault(key, {}).setdefault(row.epoch or 0, {})[row.layer_a] = row.value
                changed.append(key)
                self.rows.append(row)
        return list(dict.fromkeys(changed))

    def lines(self, key: tuple[str, str | None]) -> tuple[list[int], list[list[float]], list[str]]:
        """(layers, values by epoch, names of the epochs): the first, the last and some between them."""
        by_epoch = self.values[key]
        epochs = sorted(by_epoch)
        if len(epochs) > MAX_LINES:
            epochs = [epochs[round(index * (len(epochs) - 1) / (MAX_LINES - 1))] for index in range(MAX_LINES)]
        layers = sorted({layer for epoch in epochs for layer in by_epoch[epoch]})
        values = [[by_epoch[epoch].get(layer, math.nan) for layer in layers] for epoch in epochs]
        return layers, values, [f"epoch {epoch}" for epoch in epochs]

    def logged(self, keys: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
        """What `run.log` takes."""
        import wandb

        found = {}
        for score, task in keys:
            layers, values, names = self.lines((score, task))
            title = CHARTS[score][1] + (f", {task}" if self.mixture else "")
            chart = wandb.plot.line_series(layers, values, keys=names, title=title, xname="layer")
            found[f"charts/{score}" + (f"/{task}" if self.mixture else "")] = chart
        return found

    def heat_map(self) -> Any:
        """The report's map of the similarity as a `wandb.Image` (of a mixture, one for each entry), or None before the
        second epoch."""
        import wandb
        from PIL import Image

        groups = by_entry([dataclasses.asdict(row) for row in self.rows])
        if len(groups) > 1:
            figure = maps.heat_map({entry: alignment_rows(rows) for entry, rows in groups.items()})
        else:
            figure = figures_alignment.heat_map(alignment_rows(next(iter(groups.values()))))
        if figure.draw is None:
            return None
        return wandb.Image(Image.open(io.BytesIO(render(figure.draw, Theme(), "png")[0])), caption=figure.caption)
