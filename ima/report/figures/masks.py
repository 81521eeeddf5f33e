"""How much pruning masks overlap beyond chance: all pairs as a map, by block and by kind of matrix (paper, fig. 22).

From rows of `ima.interventions.prune.rows`: those of the run itself, or of the folder masks/ beside a sweep's runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from ima.core.errors import UserError
from ima.report.curves import Curve, Row, curve, finite, where
from ima.report.figures.drawing import Figure
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES, NARROW, NUM_CATEGORIES, Theme
from ima.report.run import Run
from ima.runs.results import read_rows

MAX_STROKES = 6
MAX_NUMBERED = 12  # masks in a map whose cells have room for numbers
Pair = tuple[str, str]


def mask_rows(runs: Sequence[Run]) -> list[Row]:
    """Rows of the runs themselves, else of the folder masks/ beside them; empty where there are none."""
    own = [row for run in runs for row in run.rows if str(row["score"]).startswith("mask_")]
    if own or not runs:
        return own
    top = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    try:
        return [row for row in read_rows(top / "masks" / "rows.jsonl") if str(row["score"]).startswith("mask_")]
    except (UserError, OSError, UnicodeDecodeError):
        return []


def overlap_figures(rows: Sequence[Row]) -> list[Figure]:
    """What the rows hold; nothing where no two masks were compared."""
    if not where(rows, score="mask_iou"):
        return []
    return [iou_map(rows), *by_block(rows), *by_kind(rows)]


def whole_values(rows: Sequence[Row], score: str) -> dict[Pair, float]:
    return {
        (row["dataset_a"], row["dataset_b"]): finite(row["value"])
        for row in where(rows, score=score, layer_a=None, variant=None)
    }


def iou_map(rows: Sequence[Row]) -> Figure:
    """All pairs: IoU of the kept sets as colour, beyond chance as the number below it."""
    scores = ("mask_iou", "mask_iou_chance", "mask_iou_corrected", "mask_iou_pruned", "mask_iou_pruned_chance",
              "mask_iou_pruned_corrected")  # fmt: skip
    values = {score: whole_values(rows, score) for score in scores}
    roles = {
        row[f"dataset_{side}"]: str(row[f"role_{side}"] or "") for row in where(rows, score="mask_iou") for side in "ab"
    }
    groups = compared(values["mask_iou"], lambda name: (roles[name], name))
    most = max(len(group) for group in groups)
    chances = [value for value in values["mask_iou_chance"].values() if math.isfinite(value)]

    def draw(figure: Canvas, theme: Theme) -> None:
        side = 1.9 + 0.4 * most
        figure.set_size_inches(max(NARROW, side * len(groups)), max(3.7, side))
        for ax, names in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            cells = [[math.nan] * len(names) for _ in names]
            for (a, b), value in values["mask_iou"].items():
                if a not in names:
                    continue
                row, column = sorted((names.index(a), names.index(b)), reverse=True)
                cells[row][column] = value
                if len(names) <= MAX_NUMBERED:
                    beyond = values["mask_iou_corrected"].get((a, b), math.nan)
                    ink = "#ffffff" if value < 0.75 else "#000000"
                    ax.text(
                        column, row, f"{value:.2f}\n({beyond:.2f})", ha="center", va="center", fontsize=6.5, color=ink
                    )
            # The first has nothing left of it, the last nothing below.
            rows_shown, columns_shown = abbreviated(names)[1:], abbreviated(names)[:-1]
            square = [line[:-1] for line in cells[1:]]
            low = min(chances, default=0)
            image = ax.imshow(square, "viridis", vmin=low, vmax=1, interpolation="none", extent=extent_of(len(names)))
            ax.grid(False)
            ax.spines[:].set_visible(False)
            ax.set_xticks(range(len(names) - 1), columns_shown, rotation=45, ha="right", fontsize=7.5)
            ax.set_yticks(range(1, len(names)), rows_shown, fontsize=7.5)
            ax.set_title(" ".join(shared_words(names)) if len(groups) > 1 else "", fontsize=9)
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.7, pad=0.01, aspect=30)
        bar.set_label("IoU of the kept weights", fontsize=8)

    table: list[Sequence[Any]] = [
        [*pair, *(values[score].get(pair, math.nan) for score in scores)] for pair in values["mask_iou"]
    ]
    level = f"{min(chances):.3f}" if chances else "unknown"
    level += f" to {max(chances):.3f}" if chances and max(chances) - min(chances) > 5e-4 else ""
    caption = (
        f"Intersection over union of what two masks keep; in brackets beyond chance (0 chance, 1 equal). Chance:"
        f" {level}. Masks of one LLM also agree because they share the weights' magnitudes."
    )
    header = ["mask_a", "mask_b", *(score[5:] for score in scores)]
    large = len(groups) > 1 or most > 8
    return Figure("mask_iou", "Overlap of masks", caption, draw, (header, table), panels=len(groups) > 1, wide=large)


def extent_of(num: int) -> tuple[float, float, float, float]:
    """Of the map without its first row and last column, so that a cell lies at (column, row)."""
    return -0.5, num - 1.5, num - 0.5, 0.5


def compared(pairs: Iterable[Pair], order: Callable[[str], Any]) -> list[list[str]]:
    """Names that were compared with each other, directly or by others in between: masks of one sparsity."""
    groups: list[set[str]] = []
    for pair in pairs:
        met = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in met] + [set(pair).union(*met)]
    return sorted((sorted(group, key=order) for group in groups), key=lambda group: group[0].split()[-1])


def shared_words(names: Sequence[str]) -> list[str]:
    words = [name.split() for name in names]
    return [word for word in words[0] if all(word in other for other in words)] if len(words) > 1 else []


def abbreviated(names: Sequence[str]) -> list[str]:
    """Without the words that all names share."""
    words, shared = [name.split() for name in names], shared_words(names)
    return [
        " ".join(word for word in each if word not in shared) or name for each, name in zip(words, names, strict=True)
    ]


def strokes_of(rows: Sequence[Row]) -> list[Stroke]:
    """A curve over the blocks for each pair; where there are many, the mean of each combination of roles."""
    pairs = list(dict.fromkeys((row["dataset_a"], row["dataset_b"]) for row in rows))
    short = dict(zip(names := sorted({n for p in pairs for n in p}), abbreviated(names), strict=True)) if pairs else {}
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        row = next(row for row in rows if (row["dataset_a"], row["dataset_b"]) == pair)
        label = f"{short[pair[0]]} ~ {short[pair[1]]}"
        if len(pairs) > MAX_STROKES:
            roles = sorted(str(row[side] or "all") for side in ("role_a", "role_b"))
            label = " ~ ".join(roles)
        groups.setdefault(label, []).append(pair)
    out = []
    for index, (label, chosen) in enumerate(groups.items()):
        kept = [row for row in rows if (row["dataset_a"], row["dataset_b"]) in chosen]
        found = mean_curve(kept, label)
        out.append(Stroke(found.label, found, f"c{index % NUM_CATEGORIES}", DASHES[index // NUM_CATEGORIES % 4]))
    return out


def mean_curve(rows: Sequence[Row], label: str) -> Curve:
    """Mean over the pairs at each block; without an error, since pairs share masks and are not independent."""
    by_block: dict[int, list[float]] = {}
    for row in rows:
        by_block.setdefault(int(row["layer_a"]), []).append(finite(row["value"]))
    means = [{"value": sum(v) / len(v), "se": None, "at": block} for block, v in by_block.items()]
    return curve(means, label, lambda row: row["at"])


def by_block(rows: Sequence[Row]) -> list[Figure]:
    kept = [row for row in rows if row["layer_a"] is not None and row["variant"] is None]
    rest = where(kept, score="mask_rest_iou_corrected")
    panels = [
        Panel("beyond chance", strokes_of(where(kept, score="mask_iou_corrected")), level=(0.0, "chance")),
        Panel("pruned weights, beyond chance", strokes_of(where(kept, score="mask_iou_pruned_corrected"))),
        *([Panel("without what magnitude keeps", strokes_of(rest))] if rest else []),
    ]
    return multiples(
        "mask_iou_by_block", "Overlap of masks by block",
        "Chance-corrected IoU of what two masks keep (and prune) in each block: 0 is chance, 1 the same mask. Where"
        " many pairs were compared, a line is the mean over those of its roles.",
        panels, ylabel="corrected IoU",
    )  # fmt: skip


def by_kind(rows: Sequence[Row]) -> list[Figure]:
    kept = [row for row in where(rows, score="mask_iou_corrected") if row["layer_a"] is not None and row["variant"]]
    kinds = list(dict.fromkeys(row["variant"] for row in kept))
    return multiples(
        "mask_iou_by_kind", "Overlap of masks by kind of matrix",
        "The same by matrix and block: where modalities use the same weights, and where their own.",
        [Panel(kind.rpartition(".")[2], strokes_of(where(kept, variant=kind))) for kind in kinds], columns=3,
        ylabel="corrected IoU",
    )  # fmt: skip
